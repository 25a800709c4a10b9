#!/usr/bin/env python3
"""Compares logits of our CUDA prefill with those of transformers on a CUDA device.

Cases: a model folder (the shipped one), and random models in the shapes of Llama-3.1 (llama3 RoPE) and
Qwen3 (q/k norm). For each, transformers runs in bf16 and in fp32; our error is judged against fp32 and may
be twice the error that transformers' own bf16 makes. Exit code 1 when it is not.

  python3 scripts/prefill_peers.py --bench build/cuda/bench_prefill --seqlen 512
"""

import argparse
import os
import subprocess
import sys
import tempfile

try:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
except ImportError as error:
    sys.exit(f"prefill_peers.py needs PyTorch with CUDA, transformers and safetensors ({error})")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
             num_key_value_heads=2, vocab_size=4096, max_position_embeddings=131072, initializer_range=0.05)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=128)


def random_configs():
    yield "random-llama-3.1", LlamaConfig(**SIZES, head_dim=64, rope_theta=500000.0, rope_parameters=dict(LLAMA3_ROPE))
    yield "random-qwen3", Qwen3Config(**SIZES, head_dim=128, rope_theta=1000000.0, tie_word_embeddings=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default=os.path.join(ROOT, "build/cuda/bench_prefill"))
    parser.add_argument("--model", default=os.path.join(ROOT, "data/tiny-llama"))
    parser.add_argument("--tokens", default=os.path.join(ROOT, "data/tokens/war_and_peace.safetensors"))
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--cublas", default="", help="folder of cuBLAS for our binary")
    return parser.parse_args()


def transformers_logits(folder, dtype, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").cuda().eval()
    with torch.no_grad():
        return model(tokens[None].cuda()).logits[0].float().cpu()


def our_logits(arguments, folder, out):
    command = [arguments.bench, "--model", folder, "--tokens", arguments.tokens, "--seqlen", str(arguments.seqlen),
               "--methods", "dense", "--warmup", "0", "--repeats", "1", "--logits", out]
    if arguments.cublas:
        command += ["--cublas", arguments.cublas]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tensors = load_file(out)
    return tensors["logits"], tensors["losses"]


def mean_loss(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[1:]).item()


def compare(arguments, name, folder, tokens, scratch):
    exact = transformers_logits(folder, torch.float32, tokens)
    rounded = transformers_logits(folder, torch.bfloat16, tokens)
    ours, losses = our_logits(arguments, folder, os.path.join(scratch, "logits.safetensors"))
    own_error = (rounded - exact).abs().max().item()
    our_error = (ours - exact).abs().max().item()
    print(f"{name:<18} max |bf16 - fp32| {own_error:.4f}  max |ours - fp32| {our_error:.4f} "
          f"(ratio {our_error / own_error:.2f})  max |ours - bf16| {(ours - rounded).abs().max().item():.4f}  "
          f"mean {(rounded - exact).abs().mean().item():.5f} {(ours - exact).abs().mean().item():.5f}  "
          f"loss fp32 {mean_loss(exact, tokens):.5f} bf16 {mean_loss(rounded, tokens):.5f} "
          f"ours {losses.mean().item():.5f}", flush=True)
    return our_error <= 2.0 * own_error


def main():
    arguments = parse_arguments()
    torch.backends.cuda.matmul.allow_tf32 = False
    tokens = load_file(arguments.tokens)["input_ids"].flatten()[:arguments.seqlen].long()
    agreed = True
    with tempfile.TemporaryDirectory() as scratch:
        agreed &= compare(arguments, os.path.basename(arguments.model.rstrip("/")), arguments.model, tokens, scratch)
        for seed, (name, config) in enumerate(random_configs()):
            torch.manual_seed(seed)
            folder = os.path.join(scratch, name)
            AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
            agreed &= compare(arguments, name, folder, tokens, scratch)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
