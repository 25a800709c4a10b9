#!/usr/bin/env python3
"""gguf_to_hf.py on GGUF files made from the tiny models of data/fixtures/models, and on broken ones.
Needs the Python package gguf; passes, saying so, where it is not installed."""

import contextlib
import io
import json
import os
import pathlib
import struct
import sys
import tempfile
import unittest

try:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
    from gguf.gguf_writer import GGUFValue
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gguf_to_hf  # noqa: E402

MODELS = ROOT / "data/fixtures/models"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def read_bf16(folder):
    """Name -> fp32 array, of all safetensors files in a folder."""
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        for name, info in json.loads(data[8:8 + size]).items():
            if name == "__metadata__":
                continue
            assert info["dtype"] == "BF16", info
            begin, end = (8 + size + offset for offset in info["data_offsets"])
            bits = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(info["shape"])
    return tensors


def interleaved(values, heads):
    """The order of rotary pairs in llama.cpp."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def byte_characters():
    """The printable characters that byte-level BPE writes bytes as."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(shifted)) for b in range(256)]


def gguf_name(name):
    for source, target in gguf_to_hf.TOP_TENSORS.items():
        if name == target:
            return source
    parts = name.split(".")
    for source, target in gguf_to_hf.LAYER_TENSORS.items():
        if ".".join(parts[3:-1]) == target:
            return f"blk.{parts[2]}.{source}.{parts[-1]}"
    raise AssertionError(name)


def write_tokenizer(writer, vocab_size, pre="smollm", kind="gpt2", pieces=None):
    pieces = pieces or byte_characters()[:vocab_size - 4] + ["AB", "<|end|>", "<|user|>", "[PAD]"]
    types = [NORMAL] * (vocab_size - 3) + [CONTROL, USER_DEFINED]
    types += [UNUSED] * (len(pieces) - len(types))
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(vocab_size - 3)
    writer.add_eos_token_id(vocab_size - 3)
    writer.add_add_bos_token(False)


def write_gguf(path, fixture, arch, *, skip=(), extra=None, tokenizer=None, scaling=None,
               keys=None):
    config = json.loads((MODELS / fixture / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_uint32(f"{arch}.attention.key_length", head_dim)
    writer.add_uint32(f"{arch}.attention.value_length", head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_rope_freq_base(theta)
    for key, value in (scaling or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32
         if isinstance(value, int) else writer.add_float32)(f"{arch}.rope.scaling.{key}", value)
    write_tokenizer(writer, config["vocab_size"], **(tokenizer or {}))
    for key, value in (keys or {}).items():  # in place of those before; None: not there
        if value is None:
            del writer.kv_data[0][key]
        elif isinstance(value, bool):
            writer.kv_data[0][key] = GGUFValue(value, GGUFValueType.BOOL)
        else:
            writer.kv_data[0][key] = GGUFValue(*value)
    for name, values in read_bf16(MODELS / fixture).items():
        target = gguf_name(name)
        if target in skip:
            continue
        if arch == "llama" and ".attn_q." in target:
            values = interleaved(values, heads)
        if arch == "llama" and ".attn_k." in target:
            values = interleaved(values, kv_heads)
        writer.add_tensor(target, np.ascontiguousarray(values))
    for name, values, dtype in extra or ():
        writer.add_tensor(name, values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config


class GgufToHfTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.gguf = self.folder / "model.gguf"
        self.out = self.folder / "out"

    def convert(self):
        with contextlib.redirect_stderr(io.StringIO()):
            gguf_to_hf.convert(self.gguf, self.out)
        return json.loads((self.out / "config.json").read_text())

    def expect_refused(self, *parts):
        with self.assertRaises(gguf_to_hf.Refused) as caught:
            gguf_to_hf.convert(self.gguf, self.out)
        for part in parts:
            self.assertIn(part, str(caught.exception))
        self.assertFalse(self.out.exists(), "nothing half-written")

    def expect_same_weights(self, fixture):
        expected, found = read_bf16(MODELS / fixture), read_bf16(self.out)
        self.assertEqual(sorted(expected), sorted(found))
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)

    def test_llama_comes_back_with_its_rotary_pairs_and_biases(self):
        config = write_gguf(self.gguf, "llama_untied", "llama")
        found = self.convert()
        self.expect_same_weights("llama_untied")
        for key in ("architectures", "hidden_size", "intermediate_size", "num_hidden_layers",
                    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
                    "max_position_embeddings", "rms_norm_eps", "attention_bias", "mlp_bias",
                    "tie_word_embeddings"):
            self.assertEqual(found[key], config[key], key)
        self.assertEqual(found["rope_theta"], 10000.0)
        self.assertEqual(sorted(p.name for p in self.out.iterdir()),
                         ["config.json", "model.safetensors", "tokenizer.json",
                          "tokenizer_config.json"])

    @unittest.skipUnless((MODELS / "qwen2_yarn").exists(), "no such fixture")
    def test_qwen2_comes_back_with_yarn(self):
        write_gguf(self.gguf, "qwen2_yarn", "qwen2",
                   scaling={"type": "yarn", "factor": 4.0, "original_context_length": 32})
        found = self.convert()
        self.expect_same_weights("qwen2_yarn")
        self.assertEqual(found["architectures"], ["Qwen2ForCausalLM"])
        self.assertEqual(found["rope_scaling"], {"rope_type": "yarn", "factor": 4.0,
                                                 "original_max_position_embeddings": 32})
        self.assertTrue(found["tie_word_embeddings"])

    def test_llama3_frequency_factors_become_its_parameters(self):
        theta, head_dim = 500000.0, 128
        wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
        factors = np.where(wavelength < 2048, 1.0, 8.0)
        middle = (wavelength >= 2048) & (wavelength <= 8192)
        smooth = (8192 / wavelength[middle] - 1) / 3
        factors[middle] = 1 / ((1 - smooth) / 8 + smooth)
        scaling, _ = gguf_to_hf.llama3_scaling(factors, theta, head_dim, 131072)
        self.assertEqual(scaling["factor"], 8.0)
        with self.assertRaises(gguf_to_hf.Refused):
            gguf_to_hf.llama3_scaling(factors[::-1], theta, head_dim, 131072)

    def test_tokenizer_has_the_ids_of_the_file(self):
        write_gguf(self.gguf, "llama_untied", "llama")
        self.convert()
        tokenizer = json.loads((self.out / "tokenizer.json").read_text())
        self.assertEqual([(t["id"], t["content"], t["special"])
                          for t in tokenizer["added_tokens"]],
                         [(98, "<|end|>", True), (99, "<|user|>", False)])
        self.assertNotIn("[PAD]", tokenizer["model"]["vocab"])
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return
        loaded = Tokenizer.from_file(str(self.out / "tokenizer.json"))
        characters = byte_characters()
        text = "".join(chr(b) for b in range(58, 90) if characters[b] == chr(b)) + "<|end|>"
        self.assertEqual(loaded.encode(text).ids, [*range(58, 65), 97, *range(67, 90), 98])
        self.assertEqual(loaded.decode(loaded.encode(text).ids, skip_special_tokens=False), text)

    def test_texts_begin_with_bos_where_llama_cpp_has_it_so(self):
        for pre, said, expected in (("smollm", None, False), ("llama-bpe", None, True),
                                    ("llama-bpe", False, False), ("smollm", True, True)):
            with self.subTest(pre=pre, said=said):
                out = self.folder / f"{pre}-{said}"
                write_gguf(self.gguf, "llama_untied", "llama", tokenizer={"pre": pre},
                           keys={"tokenizer.ggml.add_bos_token": said})
                with contextlib.redirect_stderr(io.StringIO()):
                    gguf_to_hf.convert(self.gguf, out)
                tokenizer, config = (json.loads((out / name).read_text())
                                     for name in ("tokenizer.json", "tokenizer_config.json"))
                self.assertEqual(tokenizer["post_processor"] is not None, expected)
                self.assertEqual(config["add_bos_token"], expected)

    def test_what_is_not_supported_is_named(self):
        write_gguf(self.gguf, "llama_untied", "gemma3")
        self.expect_refused("general.architecture: found 'gemma3'", "llama, qwen2, qwen3")
        write_gguf(self.gguf, "llama_untied", "llama", tokenizer={"pre": "deepseek-v3"})
        self.expect_refused("tokenizer.ggml.pre: found 'deepseek-v3'", "smollm", "qwen2")
        write_gguf(self.gguf, "llama_untied", "llama", keys={"tokenizer.ggml.pre": None})
        self.expect_refused("tokenizer.ggml.pre: missing")
        write_gguf(self.gguf, "llama_untied", "llama",
                   keys={"llama.attention.head_count_kv": (3, GGUFValueType.UINT32)})
        self.expect_refused("llama.attention.head_count_kv: found 3", "divisor of head_count")
        write_gguf(self.gguf, "llama_untied", "llama", tokenizer={"kind": "bert"})
        self.expect_refused("tokenizer.ggml.model: found 'bert'", "gpt2", "llama")
        write_gguf(self.gguf, "llama_untied", "llama", skip=("blk.1.ffn_up.weight",))
        self.expect_refused("model.layers.1.mlp.up_proj.weight", "[44, 32]")
        write_gguf(self.gguf, "llama_untied", "llama",
                   extra=[("blk.0.ffn_gate_exps.weight", np.zeros((2, 4), np.float32), None)])
        self.expect_refused("blk.0.ffn_gate_exps.weight")
        write_gguf(self.gguf, "llama_untied", "llama", scaling={"type": "longrope", "factor": 4.0})
        self.expect_refused("rope.scaling", "longrope", "yarn")
        write_gguf(self.gguf, "llama_untied", "llama", scaling={"type": "yarn", "factor": 4.0})
        self.expect_refused("rope.scaling.original_context_length: missing")

    def test_quantisation_that_cannot_be_read_is_named(self):
        config = json.loads((MODELS / "llama_untied/config.json").read_text())
        shape = (config["vocab_size"], config["hidden_size"])
        write_gguf(self.gguf, "llama_untied", "llama", skip=("token_embd.weight",),
                   extra=[("token_embd.weight", np.zeros(shape, np.int8),
                           GGMLQuantizationType.I8)])
        self.expect_refused("token_embd.weight", "I8", "supported", "Q4_K")

    def test_file_cut_anywhere_is_refused(self):
        write_gguf(self.gguf, "llama_untied", "llama")
        whole = self.gguf.read_bytes()
        for size in [0, 3, 4, 8, 20, 100, 1000, *range(2000, len(whole), 4999), len(whole) - 33]:
            self.gguf.write_bytes(whole[:size])
            with self.subTest(size=size):
                self.expect_refused("")

    def test_lengths_and_offsets_that_lie_are_refused(self):
        write_gguf(self.gguf, "llama_untied", "llama")
        whole = self.gguf.read_bytes()

        def after(name):
            return whole.find(name) + len(name)

        tensor = after(b"token_embd.weight")  # dimensions: number, two lengths; type; offset
        places = {"version": (4, "<I"), "tensors": (8, "<Q"), "keys": (16, "<Q"),
                  "key length": (24, "<Q"), "string array": (after(b"ggml.tokens") + 8, "<Q"),
                  "number array": (after(b"ggml.token_type") + 8, "<Q"),
                  "layers": (after(b"llama.block_count") + 4, "<I"), "dimensions": (tensor, "<I"),
                  "dimension": (tensor + 4, "<Q"), "type": (tensor + 20, "<I"),
                  "offset": (tensor + 24, "<Q")}
        for name, (place, code) in places.items():
            largest = 2 ** (8 * struct.calcsize(code)) - 1
            for value in (0, 1, 31, 2**31, largest // 2 + 1, largest - 31, largest):
                if struct.unpack_from(code, whole, place)[0] == value:
                    continue
                broken = bytearray(whole)
                struct.pack_into(code, broken, place, value)
                self.gguf.write_bytes(broken)
                with self.subTest(place=name, value=value):
                    self.expect_refused("")

    def test_tensors_that_overlap_or_leave_a_gap_are_refused(self):
        write_gguf(self.gguf, "llama_untied", "llama")
        whole = bytearray(self.gguf.read_bytes())
        name = b"blk.0.attn_norm.weight"
        place = whole.find(name) + len(name) + 4 + 8 + 4
        struct.pack_into("<Q", whole, place, struct.unpack_from("<Q", whole, place)[0] - 32)
        self.gguf.write_bytes(whole)
        self.expect_refused("tensor 'blk.0.attn_norm.weight': offset is", "expected")

    def test_values_that_cannot_be_are_named(self):
        number, text = GGUFValueType.FLOAT32, GGUFValueType.STRING
        for key, value, kind in (("llama.rope.freq_base", float("nan"), number),
                                 ("llama.rope.freq_base", "x", text),
                                 ("llama.attention.layer_norm_rms_epsilon", 0.0, number),
                                 ("llama.rope.scaling.factor", -4.0, number),
                                 ("llama.embedding_length", True, GGUFValueType.BOOL),
                                 ("tokenizer.ggml.bos_token_id", "x", text),
                                 ("tokenizer.chat_template", 3.0, number),
                                 ("split.count", 3, GGUFValueType.UINT16)):
            with self.subTest(key=key, value=value):
                write_gguf(self.gguf, "llama_untied", "llama", keys={key: (value, kind)})
                self.expect_refused(key + ": ")

    def test_strings_that_are_not_utf8_are_named(self):
        write_gguf(self.gguf, "llama_untied", "llama")
        whole = self.gguf.read_bytes()
        for text, key in ((b"<|end|>", "tokenizer.ggml.tokens"), (b"smollm", "tokenizer.ggml.pre"),
                          (b"llama.block_count", "key "), (b"token_embd.weight", "tensor ")):
            with self.subTest(text=text):
                self.gguf.write_bytes(whole.replace(text, b"\xff" + text[1:], 1))
                self.expect_refused(key, "xff", "expected UTF-8")

    def test_weights_that_are_not_finite_are_named(self):
        write_gguf(self.gguf, "llama_untied", "llama", skip=("output_norm.weight",),
                   extra=[("output_norm.weight", np.full(32, 3.4e38, np.float32), None)])
        self.expect_refused("output_norm.weight", "not finite")

    def test_tokens_that_occur_twice_or_have_no_row_are_named(self):
        pieces = byte_characters()[:97] + ["AB", "<|end|>", "<|user|>", "[PAD]"]
        write_gguf(self.gguf, "llama_untied", "llama",
                   tokenizer={"pieces": [*pieces[:99], "<|end|>", "[PAD]"]})
        self.expect_refused("tokenizer.ggml.tokens: '<|end|>'", "98", "99")
        write_gguf(self.gguf, "llama_untied", "llama", tokenizer={"pieces": [*pieces, "[PAD2]"]})
        self.expect_refused("tokenizer.ggml.tokens: 102 tokens", "101")

    def test_folder_that_cannot_be_written_keeps_nothing(self):
        write_gguf(self.gguf, "llama_untied", "llama")
        original = os.replace

        def failing(source, target):
            if pathlib.Path(target).name == "tokenizer.json":
                raise OSError(28, "No space left on device", str(target))
            original(source, target)

        gguf_to_hf.os.replace = failing
        try:
            with self.assertRaises(OSError):
                gguf_to_hf.convert(self.gguf, self.out)
        finally:
            gguf_to_hf.os.replace = original
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main()
