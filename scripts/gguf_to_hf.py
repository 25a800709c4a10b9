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
import os
import pathlib
import re
import signal
import struct
import sys

from gguf_file import (  # first: it says what to do where gguf is not installed
    ARCHITECTURES, Metadata, Refused, open_gguf, read_tensor, readable_types, shape_of, type_name)
from gguf_tokenizer import make_tokenizer, make_tokenizer_config
import numpy as np


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
    kv_heads = meta.size("attention.head_count_kv", heads)
    if heads % kv_heads != 0:
        raise Refused(f"{meta.arch}.attention.head_count_kv: found {kv_heads}, expected a divisor of "
                      f"head_count {heads}")
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
        "num_key_value_heads": kv_heads,
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
