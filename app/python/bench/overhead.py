#!/usr/bin/env python3
"""What a call from Python costs beside the same work enqueued from C++, in microseconds of the host.

A batch of n sequences is one call from Python and n enqueued from C++: what a sequence adds is the
C++ path, and the rest of a call of one sequence is the overhead. Needs PyTorch and a GPU.
"""

import argparse
import json
import statistics
import time

import torch

import s2o


def host_us(call, repeats):
    """Median host time of one call, with an empty queue before each."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
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
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    batch = 5
    tensors = [torch.randn(batch, heads, options.seqlen, options.head_dim, dtype=torch.bfloat16,
                           device="cuda") for heads in (options.heads[0], *options.heads[1:] * 2)]
    one = [tensor[0] for tensor in tensors]
    many_out, one_out = torch.empty_like(tensors[0]), torch.empty_like(one[0])
    for method in options.methods:
        call_one = lambda: s2o.attention(*one, method, out=one_out)
        call_many = lambda: s2o.attention(*tensors, method, out=many_out)
        call_one(), call_many()
        one_us, many_us = host_us(call_one, options.repeats), host_us(call_many, options.repeats)
        cpp_us = (many_us - one_us) / (batch - 1)
        new_us = host_us(lambda: s2o.attention(*one, method), options.repeats)
        print(json.dumps({"method": method, "seqlen": options.seqlen, "call_us": round(one_us, 1),
                          "cpp_us": round(cpp_us, 1), "overhead_us": round(one_us - cpp_us, 1),
                          "overhead_with_new_output_us": round(new_us - cpp_us, 1),
                          "device_us": round(device_us(call_one, options.repeats), 1)}))


if __name__ == "__main__":
    main()
