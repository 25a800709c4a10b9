#!/usr/bin/env python3
"""Turns a GGUF file into a Hugging Face folder that s2o (and transformers) reads: config.json,
model.safetensors in BF16, tokenizer.json, and tokenizer_config.json with the chat template.

  python3 -m venv venv && venv/bin/pip install gguf
  venv/bin/python scripts/gguf_to_hf.py MODEL.gguf OUT_FOLDER

Architectures: llama (Mistral files say llama as well), qwen2, qwen3. Quantised weights are
dequantised to fp32 and rounded to BF16, so the folder holds the quantised model, not the original:
label figures so. Files are written under temporary names and renamed at the end, config.json last;
OUT_FOLDER must not hold a model yet.

Exit code 2: usage; 3: a GGUF that is broken or not supported, with what is supported; 130: interrupted.
"""

import argparse
import json
import math
import os
import pathlib
import re
import signal
import struct
import sys

try:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, TokenType
    from gguf.quants import dequantize
except ImportError as error:
    sys.exit(f"gguf_to_hf.py: {error}; install the Python package gguf: python3 -m venv venv && "
             "venv/bin/pip install gguf, then venv/bin/python in place of python3")


class Refused(Exception):
    """The file cannot be converted; the message says what was found and what is supported."""


ARCHITECTURES = {"llama": ("LlamaForCausalLM", "llama"),
                 "qwen2": ("Qwen2ForCausalLM", "qwen2"),
                 "qwen3": ("Qwen3ForCausalLM", "qwen3")}
DEFAULT_THETA = 10000.0

TOP_TENSORS = {"token_embd.weight": "model.embed_tokens.weight",
               "output_norm.weight": "model.norm.weight",
               "output.weight": "lm_head.weight"}
LAYER_TENSORS = {"attn_norm": "input_layernorm",
                 "attn_q": "self_attn.q_proj",
                 "attn_k": "self_attn.k_proj",
                 "attn_v": "self_attn.v_proj",
                 "attn_output": "self_attn.o_proj",
                 "attn_q_norm": "self_attn.q_norm",
                 "attn_k_norm": "self_attn.k_norm",
                 "ffn_norm": "post_attention_layernorm",
                 "ffn_gate": "mlp.gate_proj",
                 "ffn_up": "mlp.up_proj",
                 "ffn_down": "mlp.down_proj"}
# Computed from the configuration by whoever reads the folder.
DERIVED_TENSORS = {"rope_freqs.weight"}


KIND_NAMES = {int: "an integer", str: "a string", list: "a list", bool: "true or false"}


class Metadata:
    """Key-value pairs of the file, with errors that name the key."""

    def __init__(self, reader):
        self.fields = reader.fields
        self.arch = self.get("general.architecture", kind=str)
        if self.arch not in ARCHITECTURES:
            raise Refused(f"general.architecture: found '{self.arch}', supported: "
                          f"{', '.join(ARCHITECTURES)}")
        if self.optional("split.count", int, 1) > 1:
            raise Refused(f"split.count: one of {self.get('split.count')} files that hold the model, "
                          "supported: one file (llama-gguf-split --merge makes it)")

    def get(self, key, default=None, kind=None):
        field = self.fields.get(key)
        if field is None:
            if default is None and kind is not None:
                raise Refused(f"{key}: missing")
            return default
        value = field.contents()
        if kind is not None and (not isinstance(value, kind) or kind is int and value is True):
            raise Refused(f"{key}: found {str(value)[:60]!r}, expected {KIND_NAMES[kind]}")
        return value

    def optional(self, key, kind, default=None):
        return self.get(key, kind=kind) if key in self.fields else default

    def model(self, key, default=None, kind=None):
        return self.get(f"{self.arch}.{key}", default, kind)

    def number(self, key, default=None):
        """A positive number of the model; without a default it has to be there."""
        value = self.model(key, default)
        name = f"{self.arch}.{key}"
        if value is None:
            raise Refused(f"{name}: missing")
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not (math.isfinite(value) and value > 0):
            raise Refused(f"{name}: found {str(value)[:60]!r}, expected a positive number")
        return float(value)

    def token_id(self, name, num_tokens):
        """Of a special token; None without one, or where it is no token (as llama.cpp has it)."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.optional(key, int)
        if value is None or 0 <= value < num_tokens:
            return value
        print(f"gguf_to_hf.py: warning: {key}: found {value}, ignored, as there are {num_tokens} "
              "tokens", file=sys.stderr)
        return None

    def size(self, key, default=None):
        value = self.model(key, default, None if default is not None else int)
        if isinstance(value, list):  # one value a layer, in files of newer converters
            if len(set(value)) != 1:
                raise Refused(f"{self.arch}.{key}: differs between layers, supported: one value")
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refused(f"{self.arch}.{key}: found {value!r}, expected a positive integer")
        return value


def rope_scaling(meta, context):
    """rope_scaling of config.json, and max_position_embeddings."""
    kind = meta.model("rope.scaling.type", "none")
    factor = None  # 0: none
    for key in ("rope.scale_linear", "rope.scaling.factor"):
        if meta.model(key) not in (None, 0):
            factor = meta.number(key)
    if kind == "none" and factor not in (None, 1.0):
        kind = "linear"  # files from before rope.scaling.type
    if kind == "none":
        return None, context
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": factor}, context
    if kind == "yarn" and factor:
        original = meta.size("rope.scaling.original_context_length")
        scaling = {"rope_type": "yarn", "factor": factor,
                   "original_max_position_embeddings": original}
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if meta.model(f"rope.scaling.{key}") is not None:
                scaling[name] = meta.number(f"rope.scaling.{key}")
        for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
            if meta.model(f"rope.scaling.{key}") not in (None, 1.0):
                raise Refused(f"{meta.arch}.rope.scaling.{key}: found "
                              f"{meta.model(f'rope.scaling.{key}')}, supported: 1")
        return scaling, context
    raise Refused(f"{meta.arch}.rope.scaling: type '{kind}', factor {factor}; supported: none, "
                  "linear and yarn, each with its factor")


def llama3_scaling(frequency_factors, theta, head_dim, context):
    """Llama 3 files hold, instead of parameters, by what each frequency is divided."""
    factor = float(frequency_factors.max())
    # The published values; what they give must be what the file holds.
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    pairs = np.arange(0, head_dim, 2) / head_dim
    wavelength = 2 * np.pi * theta ** pairs
    smooth = np.clip((8192 / wavelength - 1.0) / 3.0, 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if frequency_factors.shape != expected.shape or not np.allclose(
            frequency_factors, expected, rtol=1e-3):
        raise Refused("rope_freqs.weight: not the factors of Llama 3 (low 1, high 4, original "
                      "length 8192), supported: those, or none")
    return scaling, context


def make_config(meta, tensors):
    heads, hidden = meta.size("attention.head_count"), meta.size("embedding_length")
    head_dim = meta.size("attention.key_length", hidden // heads)
    if meta.size("attention.value_length", head_dim) != head_dim:
        raise Refused(f"{meta.arch}.attention.value_length: differs from key_length {head_dim}, "
                      "supported: equal lengths")
    if meta.size("rope.dimension_count", head_dim) != head_dim:
        raise Refused(f"{meta.arch}.rope.dimension_count: found "
                      f"{meta.size('rope.dimension_count')}, supported: the head_dim {head_dim}")
    for key in ("expert_count", "attention.sliding_window"):
        if meta.model(key, 0):
            raise Refused(f"{meta.arch}.{key}: found {meta.model(key)}, supported: dense models "
                          "with full attention")
    theta = meta.number("rope.freq_base", DEFAULT_THETA)
    scaling, positions = rope_scaling(meta, meta.size("context_length"))
    layers = meta.size("block_count")
    if layers > len(tensors):
        raise Refused(f"{meta.arch}.block_count: found {layers}, more than the {len(tensors)} tensors "
                      "of the file")
    if "rope_freqs.weight" in tensors:
        if scaling is not None:
            raise Refused(f"tensor 'rope_freqs.weight': beside {meta.arch}.rope.scaling of type "
                          f"{scaling['rope_type']}, supported: one of them")
        scaling, positions = llama3_scaling(read_tensor(tensors["rope_freqs.weight"]), theta,
                                            head_dim, positions)
    architecture, model_type = ARCHITECTURES[meta.arch]
    vocab_size = shape_of(tensors["token_embd.weight"])[0]
    num_tokens = len(meta.get("tokenizer.ggml.tokens", kind=list))
    if num_tokens > vocab_size:
        raise Refused(f"tokenizer.ggml.tokens: {num_tokens} tokens, but 'token_embd.weight' has rows "
                      f"for {vocab_size}")
    biases = "blk.0.attn_q.bias" in tensors
    if biases and meta.arch != "qwen2" and "blk.0.attn_output.bias" not in tensors:
        raise Refused(f"blk.0.attn_q.bias: a bias of q, k and v alone is not part of {meta.arch}, "
                      "supported: qwen2")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": meta.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        # fp32 in the file: the shortest decimal that gives it.
        "rms_norm_eps": float(str(np.float32(meta.number("attention.layer_norm_rms_epsilon")))),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_bias": biases and meta.arch != "qwen2",
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": vocab_size,
        "bos_token_id": meta.token_id("bos", num_tokens),
        "eos_token_id": meta.token_id("eos", num_tokens),
        "dtype": "bfloat16",
    }


# ---- weights

def shape_of(tensor):
    """Row-major, as safetensors has it; GGUF gives the fastest dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def read_tensor(tensor):
    try:
        return dequantize(tensor.data, tensor.tensor_type).reshape(shape_of(tensor))
    except NotImplementedError:
        raise Refused(f"tensor '{tensor.name}': quantisation {type_name(tensor)} cannot be read "
                      f"by this gguf package; supported: {', '.join(readable_types())}") from None


def type_name(tensor):
    return getattr(tensor.tensor_type, "name", str(tensor.tensor_type))


def readable_types():
    from gguf import quants
    types = [GGMLQuantizationType.F32, GGMLQuantizationType.F16]
    return sorted(t.name for t in [*types, *getattr(quants, "_type_traits", {})])


def to_bf16(values):
    """Bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def half_split(weight, heads):
    """llama.cpp keeps rotary pairs of the llama architecture side by side; Hugging Face pairs
    element i of a head with element i + head_dim / 2."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def hf_name(name):
    if name in TOP_TENSORS:
        return TOP_TENSORS[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in LAYER_TENSORS:
        return f"model.layers.{match[1]}.{LAYER_TENSORS[match[2]]}.{match[3]}"
    return None


def expected_shapes(config):
    hidden, inner, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    vocab = config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    qwen2, qwen3 = (config["model_type"] == name for name in ("qwen2", "qwen3"))
    linears = {"self_attn.q_proj": (q, hidden, config["attention_bias"] or qwen2),
               "self_attn.k_proj": (kv, hidden, config["attention_bias"] or qwen2),
               "self_attn.v_proj": (kv, hidden, config["attention_bias"] or qwen2),
               "self_attn.o_proj": (hidden, q, config["attention_bias"]),
               "mlp.gate_proj": (inner, hidden, config["mlp_bias"]),
               "mlp.up_proj": (inner, hidden, config["mlp_bias"]),
               "mlp.down_proj": (hidden, inner, config["mlp_bias"])}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        if qwen3:
            shapes[layer + "self_attn.q_norm.weight"] = (d,)
            shapes[layer + "self_attn.k_norm.weight"] = (d,)
        for name, (out, inputs, bias) in linears.items():
            shapes[layer + name + ".weight"] = (out, inputs)
            if bias:
                shapes[layer + name + ".bias"] = (out,)
    return shapes


def match_tensors(config, tensors):
    """Hugging Face name -> tensor of the file; all are there, of the right shape, and readable."""
    matched = {}
    for name, tensor in tensors.items():
        target = hf_name(name)
        if target is None and name not in DERIVED_TENSORS:
            raise Refused(f"tensor '{name}': not part of {config['model_type']} as supported here")
        if target is not None:
            matched[target] = tensor
    for name, shape in expected_shapes(config).items():
        if name not in matched:
            raise Refused(f"no tensor for '{name}', expected one of shape {list(shape)}")
        if shape_of(matched[name]) != shape:
            raise Refused(f"tensor '{matched[name].name}': shape is "
                          f"{list(shape_of(matched[name]))}, expected {list(shape)}")
        if type_name(matched[name]) not in readable_types():
            read_tensor(matched[name])  # refuses, before anything is written
    extra = set(matched) - set(expected_shapes(config))
    if extra:
        raise Refused(f"tensor '{matched[min(extra)].name}': not part of "
                      f"{config['model_type']} as supported here")
    return dict(sorted(matched.items()))


def write_weights(path, config, matched):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in matched.items():
        size = 2 * int(np.prod(shape_of(tensor)))
        header[name] = {"dtype": "BF16", "shape": list(shape_of(tensor)),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in matched.items():
            values = read_tensor(tensor)
            projection = name.split(".")[-2]
            if config["model_type"] == "llama" and projection in heads:
                values = half_split(values, heads[projection])
            bits = to_bf16(values)
            if ((bits & 0x7F80) == 0x7F80).any():
                raise Refused(f"tensor '{tensor.name}': a value is not finite in BF16")
            file.write(bits.tobytes())
    return offset // 2


# ---- tokenizer

# Pre-tokenisers by tokenizer.ggml.pre: a pattern, or digits split off before the pattern of GPT-2
# that the byte-level step has. `nfc`: text is normalised before.
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PRE_TOKENIZERS = {
    "gpt-2": {},
    "smollm": {"digits": True},
    "llama-bpe": {"pattern": LLAMA3_PATTERN, "ignore_merges": True},
    "qwen2": {"pattern": LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"), "nfc": True},
    # Mistral NeMo and later (tekken).
    "tekken": {"pattern": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
                          r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
                          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
                          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
               "ignore_merges": True},
}


def make_tokenizer(meta):
    kind = meta.get("tokenizer.ggml.model", kind=str)
    pieces = meta.get("tokenizer.ggml.tokens", kind=list)
    types = meta.get("tokenizer.ggml.token_type", kind=list)
    if len(types) != len(pieces):
        raise Refused(f"tokenizer.ggml.token_type: {len(types)} values for {len(pieces)} tokens")
    known, ids = {int(kind) for kind in TokenType}, {}
    for i, (piece, piece_kind) in enumerate(zip(pieces, types)):
        if piece_kind not in known:
            raise Refused(f"tokenizer.ggml.token_type: found {piece_kind} for token {i}, expected one "
                          f"of {sorted(known)}")
        if piece_kind != TokenType.UNUSED and ids.setdefault(piece, i) != i:
            raise Refused(f"tokenizer.ggml.tokens: {piece[:60]!r} is token {ids[piece]} and token {i}, "
                          "expected each once")
    if kind == "gpt2":
        result = byte_level_tokenizer(meta, pieces, types)
    elif kind == "llama":
        result = sentencepiece_tokenizer(meta, pieces, types)
    else:
        raise Refused(f"tokenizer.ggml.model: found '{kind}', supported: gpt2 (byte-level BPE), "
                      "llama (SentencePiece BPE)")
    result["added_tokens"] = [
        {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": kind == TokenType.CONTROL}
        for i, (piece, kind) in enumerate(zip(pieces, types))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    if meta.optional("tokenizer.ggml.add_bos_token", bool, False):
        bos = meta.get("tokenizer.ggml.bos_token_id", kind=int)
        if not 0 <= bos < len(pieces):
            raise Refused(f"tokenizer.ggml.bos_token_id: found {bos}, expected one of {len(pieces)} "
                          "tokens, since add_bos_token is set")
        result["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": pieces[bos], "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {pieces[bos]: {"id": pieces[bos], "ids": [bos],
                                             "tokens": [pieces[bos]]}}}
    return result


def tokenizer_frame(model, **parts):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": parts.get("normalizer"), "pre_tokenizer": parts.get("pre_tokenizer"),
            "post_processor": None, "decoder": parts["decoder"], "model": model}


def bpe_model(vocab, merges, **extra):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab, "merges": merges, **extra}


def byte_level_tokenizer(meta, pieces, types):
    pre = meta.optional("tokenizer.ggml.pre", str, "gpt-2")
    rule = PRE_TOKENIZERS.get(pre)
    if rule is None:
        raise Refused(f"tokenizer.ggml.pre: found '{pre}', supported: {', '.join(PRE_TOKENIZERS)}")
    merges = [merge.split(" ", 1) for merge in meta.get("tokenizer.ggml.merges", kind=list)]
    # Special tokens too: a reader gives one that the vocabulary lacks the next free id.
    vocab = {piece: i for i, (piece, kind) in enumerate(zip(pieces, types))
             if kind != TokenType.UNUSED}
    for merge in merges:
        if len(merge) != 2 or any(part not in vocab for part in [*merge, "".join(merge)]):
            raise Refused(f"tokenizer.ggml.merges: {merge} is no pair of tokens that makes a token")
    steps = []
    if rule.get("digits"):
        steps.append({"type": "Digits", "individual_digits": True})
    if "pattern" in rule:
        steps.append({"type": "Split", "pattern": {"Regex": rule["pattern"]},
                      "behavior": "Isolated", "invert": False})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": "pattern" not in rule}
    return tokenizer_frame(
        bpe_model(vocab, merges, ignore_merges=rule.get("ignore_merges", False)),
        normalizer={"type": "NFC"} if rule.get("nfc") else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        decoder=dict(byte_level, use_regex=True))


def sentencepiece_tokenizer(meta, pieces, types):
    """Llama 2 and the first Mistral: a merge for every split of a piece into two pieces, the piece
    of best score first; bytes for what is left."""
    scores = meta.get("tokenizer.ggml.scores", kind=list)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(scores) != len(pieces) or not all(map(math.isfinite, scores)):
        raise Refused(f"tokenizer.ggml.scores: {len(scores)} values, expected a finite one for each of "
                      f"{len(pieces)} tokens")
    if not all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        raise Refused("tokenizer.ggml.tokens: SentencePiece without its 256 byte pieces, "
                      "supported: with them")
    merges = []
    for piece, kind in zip(pieces, types):
        if kind != TokenType.NORMAL:
            continue
        for at in range(1, len(piece)):
            if piece[:at] in vocab and piece[at:] in vocab:
                merges.append((-scores[vocab[piece]], vocab[piece[:at]], vocab[piece[at:]],
                               [piece[:at], piece[at:]]))
    merges.sort(key=lambda merge: merge[:3])
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    steps = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    decoder = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
               {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [piece for piece, kind in zip(pieces, types) if kind == TokenType.UNKNOWN]
    return tokenizer_frame(
        bpe_model(vocab, [merge[3] for merge in merges], byte_fallback=True, fuse_unk=True,
                  unk_token=unknown[0] if unknown else None),
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={"type": "Sequence", "decoders": decoder})


def make_tokenizer_config(meta):
    pieces = meta.get("tokenizer.ggml.tokens", kind=list)
    result = {"tokenizer_class": "PreTrainedTokenizerFast",
              "model_max_length": meta.size("context_length"),
              "add_bos_token": meta.optional("tokenizer.ggml.add_bos_token", bool, False)}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"),
                      ("pad_token", "padding")):
        token = meta.optional(f"tokenizer.ggml.{key}_token_id", int)
        if token is not None and 0 <= token < len(pieces):
            result[name] = pieces[token]
    template = meta.optional("tokenizer.chat_template", str)
    if template:
        result["chat_template"] = template
    return result


# ---- the file

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32


class Header:
    """Walks through keys and tensors before GGUFReader does, which believes every length: all of the
    file lies in the file, nothing comes twice, and tensors follow each other without gaps, as
    llama.cpp demands."""

    def __init__(self, file, size):
        self.file, self.size, self.where = file, size, "header"
        self.alignment = DEFAULT_ALIGNMENT
        self.check_start()
        num_tensors, num_keys = self.number("<Q"), self.number("<Q")
        self.names = set()
        for i in range(num_keys):
            self.where = f"key {i} of {num_keys}"
            self.key()
        tensors = [self.tensor(i, num_tensors) for i in range(num_tensors)]
        start = self.padded(file.tell())
        place = 0
        for name, offset, num_bytes in tensors:
            if offset != place:
                raise Refused(f"tensor '{name}': offset is {offset}, expected {place}, where the tensor "
                              "before it ends")
            if start + offset + num_bytes > size:
                raise Refused(f"cut off: tensor '{name}' ends at byte {start + offset + num_bytes}, the "
                              f"file has {size}")
            place = self.padded(offset + num_bytes)

    def check_start(self):
        magic = self.file.read(4)
        if magic != b"GGUF":
            raise Refused(f"begins with {magic!r}, expected b'GGUF'")
        version = self.number("<I")
        if version not in (2, 3):
            raise Refused("big-endian, supported: little-endian" if version in (2 << 24, 3 << 24) else
                          f"version {version} of the format, supported: 2 and 3")

    def padded(self, place):
        return -(-place // self.alignment) * self.alignment

    def take(self, count):
        begin = self.file.tell()
        if begin + count > self.size:
            raise Refused(f"cut off or broken: {self.where}: {count} bytes from byte {begin} on, the "
                          f"file has {self.size}")
        return begin + count

    def number(self, code):
        size = struct.calcsize(code)
        self.take(size)
        return struct.unpack(code, self.file.read(size))[0]

    def string(self):
        size = self.number("<Q")
        self.take(size)
        return self.file.read(size)

    def name(self):
        name = self.string().decode("utf-8", errors="backslashreplace")
        if name in self.names:
            raise Refused(f"{self.where}: a second '{name}'")
        self.names.add(name)
        return name

    def key(self):
        name = self.name()
        self.where = f"key '{name}'"
        kind = self.number("<I")
        count = 1
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
        if name == "general.alignment":
            self.alignment = self.number("<I") if (kind, count) == (4, 1) else 0
            if self.alignment < 1 or self.alignment % 8 != 0:
                raise Refused("general.alignment: expected a multiple of 8 as uint32")
        elif kind in SCALAR_BYTES:
            self.file.seek(self.take(count * SCALAR_BYTES[kind]))
        elif kind == STRING:
            for _ in range(count):
                size = self.number("<Q")
                self.file.seek(self.take(size))
        else:
            raise Refused(f"{self.where}: type {kind}, supported: numbers, strings, and arrays of them")

    def tensor(self, i, count):
        """(name, offset, bytes)"""
        self.where = f"tensor {i} of {count}"
        name = self.name()
        self.where = f"tensor '{name}'"
        num_dims = self.number("<I")
        if not 1 <= num_dims <= 4:
            raise Refused(f"{self.where}: {num_dims} dimensions, expected 1 to 4")
        dims = [self.number("<Q") for _ in range(num_dims)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in {int(known) for known in GGML_QUANT_SIZES}:
            raise Refused(f"{self.where}: quantisation {kind} cannot be read by this gguf package; "
                          f"supported: {', '.join(readable_types())}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if dims[0] % block != 0:
            raise Refused(f"{self.where}: rows of {dims[0]} values, expected whole blocks of {block} "
                          f"({GGMLQuantizationType(kind).name})")
        return name, offset, math.prod(dims) // block * block_bytes


def open_gguf(path):
    if not path.is_file():
        raise Refused("no such file")
    with open(path, "rb") as file:
        Header(file, path.stat().st_size)
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader fails anywhere
        raise Refused(f"broken: {error!r}") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise Refused("tensor 'token_embd.weight': missing")
    if len(shape_of(tensors["token_embd.weight"])) != 2:
        raise Refused("tensor 'token_embd.weight': shape is "
                      f"{list(shape_of(tensors['token_embd.weight']))}, expected two dimensions")
    return reader, tensors


# ---- the folder


def convert(source, out):
    reader, tensors = open_gguf(source)
    try:
        meta = Metadata(reader)
        config = make_config(meta, tensors)
        matched = match_tensors(config, tensors)
        texts = {"tokenizer.json": json.dumps(make_tokenizer(meta), ensure_ascii=False),
                 "tokenizer_config.json": json.dumps(make_tokenizer_config(meta), indent=1),
                 "config.json": json.dumps(config, indent=1)}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Refused(f"metadata that contradicts itself: {error!r}") from None
    names = ["model.safetensors", *texts]
    for name in names:
        if (out / name).exists():
            raise Refused(f"{out / name} exists already; name another folder")
    created = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        parameters = write_weights(out / ".model.safetensors.partial", config, matched)
        for name, text in texts.items():
            (out / f".{name}.partial").write_text(text + "\n", encoding="utf-8")
        for name in names:
            os.replace(out / f".{name}.partial", out / name)
    except BaseException:
        for name in names:
            (out / f".{name}.partial").unlink(missing_ok=True)
            (out / name).unlink(missing_ok=True)
        if created and not any(out.iterdir()):
            out.rmdir()
        raise
    print(f"{out}: {config['architectures'][0]}, {parameters / 1e6:.1f} M parameters "
          f"({2 * parameters / 1e6:.0f} MB)", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path, help="folder; must not hold a model yet")
    args = parser.parse_args()
    # As Ctrl-C, so that what was begun is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        convert(args.gguf, args.out)
    except KeyboardInterrupt:
        print(f"{args.out}: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    except Refused as error:
        print(f"{args.gguf}: {error}", file=sys.stderr)
        sys.exit(3)
    except OSError as error:
        print(f"{error.filename or args.out}: {error.strerror}; nothing was written",
              file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
