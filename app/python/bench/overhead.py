#!/usr/bin/env python3
"""What a call from Python costs the host beside the same work enqueued from C++, in microseconds.

n calls of one sequence against one call of a batch of n, which C++ enqueues one after the other, both
behind a device that is busy: the difference over n is the overhead of a call. Needs PyTorch and a GPU.
"""

import argparse
import json
import statistics
import time

import torch

import s2o


def host_us(call, repeats):
    """Median host time, with the device busy from before the call to after it."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # some 10 ms
        begin = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    torch.cuda.synchronize()
    return statistics.median(times)


def device_us(call, repeats):
    """Mean device time of a call, called back to back."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=8192, help="tokens")
    parser.add_argument("--heads", type=int, nargs=2, default=(32, 8), help="query and KV heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--methods", nargs="+", default=["dense", "xattention", "s2o_plus"])
    parser.add_argument("--batch", type=int, default=16, help="n")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    batch = options.batch
    tensors = [torch.randn(batch, heads, options.seqlen, options.head_dim, dtype=torch.bfloat16,
                           device="cuda") for heads in (options.heads[0], *options.heads[1:] * 2)]
    one = [tensor[0] for tensor in tensors]
    many_out, one_out = torch.empty_like(tensors[0]), torch.empty_like(one[0])
    for method in options.methods:
        def one_by_one(**out):
            for _ in range(batch):
                s2o.attention(*one, method, **out)

        def at_once():
            s2o.attention(*tensors, method, out=many_out)

        one_by_one(out=one_out), at_once()
        calls_us = host_us(lambda: one_by_one(out=one_out), options.repeats) / batch
        allocating_us = host_us(one_by_one, options.repeats) / batch
        cpp_us = host_us(at_once, options.repeats) / batch
        device = device_us(lambda: s2o.attention(*one, method, out=one_out), options.repeats)
        print(json.dumps({"method": method, "seqlen": options.seqlen, "call_us": round(calls_us, 1),
                          "cpp_us": round(cpp_us, 1), "overhead_us": round(calls_us - cpp_us, 1),
                          "overhead_with_new_output_us": round(allocating_us - cpp_us, 1),
                          "device_us": round(device, 1)}), flush=True)


if __name__ == "__main__":
    main()
