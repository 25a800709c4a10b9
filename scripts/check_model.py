#!/usr/bin/env python3
"""Compares s2o with transformers on a real model: logits, and held-out loss at any length.

  python3 scripts/check_model.py --model MODEL --tokens TOKENS.safetensors [--seqlen 2048]
      [--loss 32768=2.9746] [--yarn-loss 131072=3.1434] [--s2o build/cuda/s2o] [--device cuda]

Logits of the last --rows positions: s2o's (bf16 Q, K and V) may be at most twice as far from
transformers in fp32 as transformers in bf16 is. --loss N=L: the held-out loss of s2o over the first
N tokens must be within 0.005 nats of L (without =L, of what transformers in bf16 says). --yarn-loss
is the same with YaRN of factor 4 over the model's own max_position_embeddings. Needs torch,
transformers and safetensors; exit code 1 when something is too far off.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MAX_RATIO = 2.0
MAX_LOSS_DIFFERENCE = 0.005  # nats
CHUNK = 4096  # positions whose logits exist at a time


def read_ids(path):
    with safe_open(path, "pt") as file:
        return file.get_tensor("input_ids").reshape(-1).long()


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


def s2o_logits(args, folder):
    out = folder / "logits.safetensors"
    run(args.s2o, "capture", "--model", args.model, "--tokens", args.tokens, "--seqlen", args.seqlen,
        "--logits", args.rows, "--device", args.device, "--out", out)
    return load_file(out)["logits"]


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=pathlib.Path, required=True)
    parser.add_argument("--seqlen", type=int, default=2048, help="of the comparison of logits")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--loss", action="append", default=[], metavar="N[=L]")
    parser.add_argument("--yarn-loss", action="append", default=[], metavar="N[=L]")
    parser.add_argument("--s2o", type=pathlib.Path, default="build/cuda/s2o")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.model, args.s2o = args.model.resolve(), args.s2o.resolve()
    ids = read_ids(args.tokens)
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prompt = ids[:args.seqlen]
        exact = last_logits(args.model, prompt, args.rows, torch.float32, args.device)
        rounded = last_logits(args.model, prompt, args.rows, torch.bfloat16, args.device)
        found = s2o_logits(args, folder)
        ratio = relative_l2(found, exact) / relative_l2(rounded, exact)
        failures += ratio > MAX_RATIO
        agree = (found.argmax(-1) == exact.argmax(-1)).float().mean().item()
        print(f"logits, last {args.rows} of {args.seqlen} tokens, relative L2 from transformers in "
              f"fp32: s2o {relative_l2(found, exact):.5f}, transformers in bf16 "
              f"{relative_l2(rounded, exact):.5f}, ratio {ratio:.2f} (at most {MAX_RATIO}); same "
              f"first choice {agree:.4f}", flush=True)
        for option, model in ([(o, args.model) for o in args.loss] +
                              [(o, with_yarn(args.model, folder)) for o in args.yarn_loss]):
            length, _, expected = option.partition("=")
            seqlen = int(length)
            loss, time_ms = s2o_loss(args, model, seqlen, folder)
            expected = float(expected) if expected else transformers_loss(model, ids[:seqlen],
                                                                          args.device)
            failures += not abs(loss - expected) <= MAX_LOSS_DIFFERENCE
            print(f"held-out loss, {seqlen} tokens{' with YaRN' if model != args.model else ''}: "
                  f"s2o {loss:.4f}, transformers in bf16 {expected:.4f}, difference "
                  f"{loss - expected:+.4f} (at most {MAX_LOSS_DIFFERENCE}); time to first token "
                  f"{time_ms:.0f} ms", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
