#!/usr/bin/env python3
"""Makes the tiny random models under data/fixtures/models and what transformers computes with them.

Each folder is a Hugging Face model directory (config.json and weights) plus expected.safetensors:
  input_ids  [n]                    int64
  logits     [n, vocab_size]        fp32, eager attention, computed in fp32 from the stored weights
  q, k, v    [heads, n, head_dim]   fp32, post-RoPE, of layer CAPTURED_LAYER
The logits come from the folder as it was written (the model is loaded back), so config spelling,
storage dtype and sharding are part of what is checked.

  python3 -m venv venv && venv/bin/pip install torch==2.8.0 transformers==5.23.0 numpy==2.4.6
  venv/bin/python scripts/make_model_fixtures.py [--out data/fixtures/models] [--only qwen2,...]

The committed llama* and qwen3 were made with exactly these versions and safetensors 0.8.0 on
x86-64, the others with torch 2.11 and transformers 5.17; each config.json names its version.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

NUM_TOKENS = 80
CAPTURED_LAYER = 1

# Small and odd sizes: nothing is a multiple of a tile, and most swapped tensors differ in shape.
COMMON = dict(vocab_size=101, hidden_size=32, intermediate_size=44, num_hidden_layers=3,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
              rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1)

# With 32 original positions the wavelengths 6.3, 20, 63, ... of head_dim 16 and theta 10000 fall
# into all three branches of the scaling: kept (< 8), blended (8 to 32) and divided (> 32).
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)

MODELS = {
    # head_dim is not written: hidden_size / num_attention_heads.
    "llama_tied": dict(
        classes=(LlamaConfig, LlamaForCausalLM), dtype=torch.float32, drop_head_dim=True,
        config=dict(COMMON, tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="default", rope_theta=500000.0))),
    # Explicit head_dim, biases everywhere.
    "llama_untied": dict(
        classes=(LlamaConfig, LlamaForCausalLM), dtype=torch.bfloat16,
        config=dict(COMMON, tie_word_embeddings=False, head_dim=20, attention_bias=True,
                    mlp_bias=True,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    # The spelling of the published Llama 3.1 checkpoints (rope_theta, rope_scaling), sharded.
    "llama3_rope": dict(
        classes=(LlamaConfig, LlamaForCausalLM), dtype=torch.bfloat16, sharded=True,
        old_rope_spelling=True,
        config=dict(COMMON, tie_word_embeddings=False, head_dim=16,
                    rope_parameters=dict(LLAMA3, rope_theta=10000.0))),
    # The newer spelling (rope_parameters), group size 4.
    "qwen3": dict(
        classes=(Qwen3Config, Qwen3ForCausalLM), dtype=torch.float16,
        config=dict(COMMON, num_attention_heads=8, tie_word_embeddings=True, head_dim=16,
                    rope_parameters=dict(LLAMA3, rope_theta=10000.0))),
    # Biases on q, k and v only; a sliding window that is switched off by not being switched on.
    "qwen2": dict(
        classes=(Qwen2Config, Qwen2ForCausalLM), dtype=torch.bfloat16, old_rope_spelling=True,
        edit=dict(sliding_window=16, max_window_layers=1),
        drop=("use_sliding_window", "layer_types"),
        config=dict(COMMON, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    # The spelling of the published Qwen2.5 model cards. 3 query heads of a KV head.
    "qwen2_yarn": dict(
        classes=(Qwen2Config, Qwen2ForCausalLM), dtype=torch.bfloat16, old_rope_spelling=True,
        config=dict(COMMON, num_attention_heads=6, hidden_size=48, head_dim=16,
                    tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0,
                                         original_max_position_embeddings=32))),
    # More tokens than max_position_embeddings: theta depends on their number.
    "qwen2_dynamic": dict(
        classes=(Qwen2Config, Qwen2ForCausalLM), dtype=torch.bfloat16,
        config=dict(COMMON, tie_word_embeddings=True, head_dim=16, max_position_embeddings=48,
                    rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0))),
    "mistral_linear": dict(
        classes=(MistralConfig, MistralForCausalLM), dtype=torch.bfloat16,
        config=dict(COMMON, tie_word_embeddings=False, head_dim=16, sliding_window=None,
                    rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0))),
    # Every key of YaRN but attention_factor, and a window as long as the prompt, which cuts
    # nothing.
    "mistral_yarn": dict(
        classes=(MistralConfig, MistralForCausalLM), dtype=torch.bfloat16,
        config=dict(COMMON, tie_word_embeddings=True, head_dim=20, sliding_window=NUM_TOKENS,
                    rope_parameters=dict(rope_type="yarn", factor=8.0, rope_theta=5000.0,
                                         original_max_position_embeddings=16, beta_fast=4.0,
                                         beta_slow=0.5, truncate=False, mscale=1.0,
                                         mscale_all_dim=0.707))),
    # YaRN with its attention factor given.
    "llama_yarn": dict(
        classes=(LlamaConfig, LlamaForCausalLM), dtype=torch.bfloat16,
        config=dict(COMMON, tie_word_embeddings=True, head_dim=16,
                    rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=10000.0,
                                         original_max_position_embeddings=32,
                                         attention_factor=1.3))),
}


def random_weights(model, seed):
    """Weights from numpy, so that they do not depend on the version of torch. Norm weights and
    biases are far from their usual 1 and 0: a model that ignores them must not pass."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = rng.standard_normal(tuple(parameter.shape))
            if name.endswith("norm.weight"):
                values = 1.0 + 0.3 * values
            elif name.endswith("bias"):
                values = 0.3 * values
            elif "embed_tokens" not in name:
                values = 1.4 * values / np.sqrt(parameter.shape[-1])
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def edit_config(folder, spec):
    """Spellings that this version of transformers reads but no longer writes."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if spec.get("drop_head_dim"):
        del config["head_dim"]
    if spec.get("old_rope_spelling"):
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    for key in spec.get("drop", ()):
        config.pop(key, None)
    config.update(spec.get("edit", {}))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def run(folder, model_class, input_ids):
    """fp32 logits of every position and post-RoPE q, k, v of one layer, of the stored folder."""
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    module = sys.modules[model_class.__module__]
    eager = module.eager_attention_forward
    captured = {}

    def recording(attention, query, key, value, *args, **kwargs):
        if attention.layer_idx == CAPTURED_LAYER:
            for name, tensor in (("q", query), ("k", key), ("v", value)):
                captured[name] = tensor[0].detach().clone().contiguous()
        return eager(attention, query, key, value, *args, **kwargs)

    module.eager_attention_forward = recording
    try:
        with torch.no_grad():
            logits = model(input_ids[None], use_cache=False).logits[0]
    finally:
        module.eager_attention_forward = eager
    return dict(captured, logits=logits.contiguous(), input_ids=input_ids)


def make(out, name, spec, seed):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    config_class, model_class = spec["classes"]
    model = model_class(config_class(**spec["config"]))
    random_weights(model, seed)
    model.to(spec["dtype"])
    model.save_pretrained(folder, max_shard_size="40KB" if spec.get("sharded") else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_config(folder, spec)
    rng = np.random.default_rng(seed + 1000)
    input_ids = torch.from_numpy(rng.integers(0, spec["config"]["vocab_size"], NUM_TOKENS))
    expected = run(folder, model_class, input_ids)
    save_file(expected, folder / "expected.safetensors")
    print(name, {key: tuple(value.shape) for key, value in expected.items()},
          f"logits std {expected['logits'].std():.3f}")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=root / "data/fixtures/models")
    parser.add_argument("--only", help="comma-separated names [all]")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else list(MODELS)
    unknown = set(only) - set(MODELS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")
    torch.set_num_threads(1)
    for seed, (name, spec) in enumerate(MODELS.items(), start=1):
        if name in only:
            make(args.out, name, spec, seed)


if __name__ == "__main__":
    main()
