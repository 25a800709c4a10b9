#!/usr/bin/env python3
"""Compares s2o with transformers: logits of real and random models, and held-out loss at any length.

  python3 scripts/check_model.py --random --model MODEL --tokens TOKENS.safetensors [--seqlen 2048]
      [--loss 32768=2.9746] [--yarn-loss 131072=3.1434] [--s2o build/cuda/s2o] [--device cuda]

Logits of the last --rows positions: s2o's (bf16 Q, K and V) may be at most twice as far from
transformers in fp32 as transformers in bf16 is, in relative L2. --random: of small random models of
every family and rope. --loss N=L: the held-out loss of s2o over the first N tokens must be within
0.005 nats of L (without =L, of what transformers in bf16 says). --yarn-loss is the same with YaRN of
factor 4 over the model's own max_position_embeddings. Needs torch, transformers and safetensors;
exit code 1 when something is too far off.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config,
                              Qwen3Config)
except ImportError as error:
    sys.exit(f"check_model.py needs torch, transformers and safetensors ({error})")

MAX_RATIO = 2.0
MAX_LOSS_DIFFERENCE = 0.005  # nats
CHUNK = 4096  # positions whose logits exist at a time


# Of head_dim 64 and 128, and with heads that are no power of two.
SIZES = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=6, vocab_size=4096,
             max_position_embeddings=131072, initializer_range=0.05)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=256)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=128)


def random_configs():
    """Configurations, and the heads they need."""
    yield "llama, llama3 rope", LlamaConfig(
        **SIZES, num_attention_heads=8, num_key_value_heads=2, head_dim=64, rope_parameters=LLAMA3)
    yield "qwen2, yarn", Qwen2Config(
        **SIZES, num_attention_heads=12, num_key_value_heads=2, head_dim=128, rope_parameters=YARN)
    yield "qwen3, default rope", Qwen3Config(
        **SIZES, num_attention_heads=8, num_key_value_heads=2, head_dim=128,
        tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))
    yield "mistral, linear rope", MistralConfig(
        **SIZES, num_attention_heads=9, num_key_value_heads=3, head_dim=64, sliding_window=None,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))
    yield "llama, dynamic rope", LlamaConfig(
        **dict(SIZES, max_position_embeddings=512), num_attention_heads=8, num_key_value_heads=8,
        head_dim=64, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0))


def read_ids(path):
    return load_file(path)["input_ids"].reshape(-1).long()


def load(model, dtype, device):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
    return loaded.to(device).eval()


@torch.no_grad()
def last_logits(model, ids, rows, dtype, device):
    loaded = load(model, dtype, device)
    hidden = loaded.model(ids[None].to(device), use_cache=False).last_hidden_state[0, -rows:]
    return loaded.lm_head(hidden).float().cpu()


@torch.no_grad()
def transformers_loss(model, ids, device):
    loaded = load(model, torch.bfloat16, device)
    hidden = loaded.model(ids[None].to(device), use_cache=False).last_hidden_state[0]
    total = 0.0
    for begin in range(0, len(ids) - 1, CHUNK):
        targets = ids[begin + 1:begin + 1 + CHUNK].to(device)
        logits = loaded.lm_head(hidden[begin:begin + len(targets)]).float()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / (len(ids) - 1)


def relative_l2(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def run(*command):
    print("+", *command, file=sys.stderr)
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def s2o_logits(args, model, tokens, folder):
    out = folder / "logits.safetensors"
    run(args.s2o, "capture", "--model", model, "--tokens", tokens, "--seqlen", args.seqlen,
        "--logits", args.rows, "--device", args.device, "--out", out)
    return load_file(out)["logits"]


def logits_agree(args, name, model, tokens, folder):
    prompt = read_ids(tokens)[:args.seqlen]
    exact = last_logits(model, prompt, args.rows, torch.float32, args.device)
    rounded = last_logits(model, prompt, args.rows, torch.bfloat16, args.device)
    found = s2o_logits(args, model, tokens, folder)
    ratio = relative_l2(found, exact) / relative_l2(rounded, exact)
    agree = (found.argmax(-1) == exact.argmax(-1)).float().mean().item()
    print(f"{name}: logits of the last {args.rows} of {args.seqlen} tokens, relative L2 from "
          f"transformers in fp32: s2o {relative_l2(found, exact):.5f}, transformers in bf16 "
          f"{relative_l2(rounded, exact):.5f}, ratio {ratio:.2f} (at most {MAX_RATIO}); same first "
          f"choice {agree:.4f}", flush=True)
    return ratio <= MAX_RATIO


def random_logits_agree(args, folder):
    agree = True
    for seed, (name, config) in enumerate(random_configs()):
        torch.manual_seed(seed)
        model = folder / f"random{seed}"
        made = AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in made.named_parameters():
            if parameter_name.endswith("bias"):  # zero when made
                torch.nn.init.normal_(parameter, std=0.5)
        made.to(torch.bfloat16).save_pretrained(model)
        tokens = folder / f"random{seed}.safetensors"
        save_file({"input_ids": torch.randint(config.vocab_size, (args.seqlen,)).int()}, tokens)
        agree &= logits_agree(args, name, model, tokens, folder)
    return agree


def s2o_loss(args, model, seqlen, folder):
    config = {"model": str(model), "device": args.device, "methods": [{"name": "dense"}],
              "prompts": [{"tokens": str(args.tokens.resolve()), "seqlen": seqlen}],
              "timing": {"warmup": 0, "repeats": 1, "cpu_repeats": 1}}
    (folder / "loss.json").write_text(json.dumps(config))
    run(args.s2o, "prefill", "--config", folder / "loss.json", "--out", folder / f"loss{seqlen}")
    row = json.loads((folder / f"loss{seqlen}/results.json").read_text())["rows"][0]
    if row["error"]:
        sys.exit(f"s2o: {row['error']}")
    return row["held_out_loss"], row["time_to_first_token_ms"]


def with_yarn(model, folder):
    """The model with YaRN in its config; weights are links."""
    target = folder / "yarn"
    target.mkdir(exist_ok=True)
    for path in model.iterdir():
        if path.name != "config.json" and not (target / path.name).exists():
            (target / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0,
                              "original_max_position_embeddings":
                              config["max_position_embeddings"]}
    (target / "config.json").write_text(json.dumps(config, indent=1))
    return target


def losses_agree(args, folder):
    ids, agree = read_ids(args.tokens), True
    for option, model in ([(o, args.model) for o in args.loss] +
                          [(o, with_yarn(args.model, folder)) for o in args.yarn_loss]):
        length, _, expected = option.partition("=")
        seqlen = int(length)
        loss, time_ms = s2o_loss(args, model, seqlen, folder)
        expected = float(expected) if expected else transformers_loss(model, ids[:seqlen],
                                                                      args.device)
        agree &= abs(loss - expected) <= MAX_LOSS_DIFFERENCE
        print(f"held-out loss, {seqlen} tokens{' with YaRN' if model != args.model else ''}: "
              f"s2o {loss:.4f}, transformers in bf16 {expected:.4f}, difference "
              f"{loss - expected:+.4f} (at most {MAX_LOSS_DIFFERENCE}); time to first token "
              f"{time_ms:.0f} ms", flush=True)
    return agree


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--random", action="store_true", help="small random models of all families")
    parser.add_argument("--model", type=pathlib.Path, help="folder")
    parser.add_argument("--tokens", type=pathlib.Path, help="token file of that model")
    parser.add_argument("--seqlen", type=int, default=2048, help="of the comparison of logits")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--loss", action="append", default=[], metavar="N[=L]")
    parser.add_argument("--yarn-loss", action="append", default=[], metavar="N[=L]")
    parser.add_argument("--s2o", type=pathlib.Path, default="build/cuda/s2o")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if (args.model is None) != (args.tokens is None) or not (args.random or args.model):
        parser.error("give --random, or --model and --tokens, or all three")
    torch.backends.cuda.matmul.allow_tf32 = False
    args.s2o = args.s2o.resolve()
    agree = True
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if args.random:
            agree &= random_logits_agree(args, folder)
        if args.model:
            args.model = args.model.resolve()
            agree &= logits_agree(args, args.model.name, args.model, args.tokens, folder)
            agree &= losses_agree(args, folder)
    return 0 if agree else 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
