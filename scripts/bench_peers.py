#!/usr/bin/env python3
"""Times causal attention of PyTorch on a CUDA device: the peers that our kernels are judged against.

Peers are referees, not dependencies: nothing here is imported by s2o. Prints one row per sequence
length, head_dim and peer; columns as those of `bench_attention`.

  python3 scripts/bench_peers.py --seqlen 4096,32768 --format json
"""

import argparse
import json
import statistics
import sys

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"bench_peers.py needs PyTorch 2.5 or newer with CUDA ({error})")

PEERS = {
    "torch_cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch_flash2": SDPBackend.FLASH_ATTENTION,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = ["seqlen", "head_dim", "num_q_heads", "num_kv_heads", "dtype", "peer", "ms", "p10_ms", "p90_ms", "tflops",
           "error"]


def integers(text):
    return [int(part) for part in text.split(",")]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqlen", type=integers, default=[4096, 8192, 16384, 32768, 65536, 131072])
    parser.add_argument("--head-dim", type=integers, default=[128, 64])
    parser.add_argument("--num-q-heads", type=int, default=32)
    parser.add_argument("--num-kv-heads", type=int, default=8)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--peers", default=",".join(PEERS), help="of " + ", ".join(PEERS))
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--format", choices=["csv", "json"], default="csv")
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.split(",")
    unknown = [peer for peer in arguments.peers if peer not in PEERS]
    if unknown:
        parser.error(f"--peers: unknown {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if arguments.repeats < 1:
        parser.error("--repeats: at least 1")
    return arguments


class ColdTimer:
    """Milliseconds of a call by CUDA events, each after a write of twice the L2 cache."""

    def __init__(self, warmup, repeats):
        self.warmup = warmup
        self.repeats = repeats
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")

    def __call__(self, body):
        for _ in range(self.warmup):
            body()
        times = []
        for _ in range(self.repeats):
            self.flush.zero_()
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            body()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return sorted(times)


def quantile(ordered, q):
    """Interpolated linearly between order statistics, as s2o does."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def measure(arguments, timer, seqlen, head_dim, peer):
    generator = torch.Generator(device="cuda").manual_seed(7)

    def tensor(heads):
        return torch.randn(1, heads, seqlen, head_dim, device="cuda", dtype=DTYPES[arguments.dtype],
                           generator=generator)

    q = tensor(arguments.num_q_heads)
    k = tensor(arguments.num_kv_heads)
    v = tensor(arguments.num_kv_heads)
    with torch.no_grad(), sdpa_kernel([PEERS[peer]]):
        times = timer(lambda: F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=arguments.num_q_heads != arguments.num_kv_heads))
    # Q K^T and P V over the causal pairs.
    flops = 4.0 * head_dim * arguments.num_q_heads * seqlen * (seqlen + 1) / 2
    median = statistics.median(times)
    return {"ms": median, "p10_ms": quantile(times, 0.1), "p90_ms": quantile(times, 0.9),
            "tflops": flops / median / 1e9}


def csv_text(value):
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def main():
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("bench_peers.py: PyTorch finds no CUDA device here")
    timer = ColdTimer(arguments.warmup, arguments.repeats)
    rows = []
    if arguments.format == "csv":
        print(",".join(COLUMNS))
    for head_dim in arguments.head_dim:
        for seqlen in arguments.seqlen:
            for peer in arguments.peers:
                row = dict.fromkeys(COLUMNS)
                row.update(seqlen=seqlen, head_dim=head_dim, num_q_heads=arguments.num_q_heads,
                           num_kv_heads=arguments.num_kv_heads, dtype=arguments.dtype, peer=peer)
                try:
                    row.update(measure(arguments, timer, seqlen, head_dim, peer))
                except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                    row["error"] = str(error).splitlines()[0]
                torch.cuda.empty_cache()
                rows.append(row)
                if arguments.format == "csv":
                    print(",".join(csv_text(row[column]) for column in COLUMNS), flush=True)
    if arguments.format == "json":
        context = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__,
                   "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        print(json.dumps({"context": context, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
