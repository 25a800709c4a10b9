#!/usr/bin/env python3
"""Times the planning of official implementations on a CUDA device, to set ours against.

The package `minference` (0.1.6, from PyPI) holds MInference itself and its authors' ports of
FlexPrefill and XAttention. What is timed is what each does before its attention kernel starts: scores,
choice, and the index arrays that the kernel reads. Times are those of the device's time line, cold L2
cache, gaps in which the device waits for the host included. Each runs with the default parameters of
`s2o list methods`. Inputs are random rows of the recipe of `bench_planning` (not its bits): MInference's
windows depend on the input, the rest hardly does.

Nothing here is imported by s2o. A row that cannot run says why in its `error`.

  PYTHONPATH=minference-0.1.6.0 python3 scripts/bench_planners.py --seqlen 8192,32768
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import json
import statistics
import sys
import types

try:
    import torch
except ImportError as error:
    sys.exit(f"bench_planners.py needs PyTorch with CUDA ({error})")

from bench_peers import DTYPES, ColdTimer, csv_text, integers, quantile

COLUMNS = ["seqlen", "method", "variant", "version", "timed", "ms", "p10_ms", "p90_ms", "error"]
BLOCK = 128


class StandIn(types.ModuleType):
    """A package that the official code imports but its planning does not use."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__version__ = "0.4.1"  # the least vLLM that is accepted
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class Renamed:
    """Device properties under another name."""

    def __init__(self, properties, name):
        self.properties = properties
        self.name = name

    def __getattr__(self, name):
        return getattr(self.properties, name)


def import_part(name, stand_ins=()):
    """A module of minference, without the package's __init__, which imports models and servers."""
    if "minference" not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec("minference")
        if spec is None:
            raise ImportError("package minference is not importable")
        package = types.ModuleType("minference")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["minference"] = package
    while True:
        try:
            return importlib.import_module("minference." + name)
        except ModuleNotFoundError as error:
            if error.name not in stand_ins or error.name in sys.modules:
                raise
            sys.modules[error.name] = StandIn(error.name)


def rows(heads, seqlen, head_dim, dtype, seed):
    """[1, heads, seqlen, head_dim]: see structured_rows of app/bench/bench_planning.cpp."""
    generator = torch.Generator(device="cuda").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator)

    channel = torch.arange(head_dim, device="cuda")
    token = torch.arange(seqlen, device="cuda")[:, None]
    common = 0.4 * torch.randn(head_dim, device="cuda", generator=torch.Generator("cuda").manual_seed(77))
    slow = 0.4 * torch.sin(0.0007 * token * (1 + channel % 7) + channel)
    out = torch.empty(1, heads, seqlen, head_dim, device="cuda", dtype=dtype)
    for head in range(heads):
        norm = torch.exp(0.4 * normal(seqlen, 1))
        out[0, head] = (norm * normal(seqlen, head_dim) + common + slow).to(dtype)
    return out


def minference(q, k, v):
    forward = import_part("modules.minference_forward", ("vllm", "kivi_gemv", "papyfaiss"))
    kernels = import_part("ops.pit_sparse_flash_attention_v2")
    seqlen = q.shape[2]
    seqlens = torch.tensor([seqlen], dtype=torch.int32, device="cuda")

    def indices_alone(query, key, value, vertical, slash):
        vertical = vertical.to(torch.int32).reshape(1, 1, -1).sort(dim=-1)[0]
        slash = slash.to(torch.int32).reshape(1, 1, -1).sort(dim=-1, descending=True)[0]
        kernels.convert_vertical_slash_indexes(seqlens, vertical, slash, seqlen, 64, 64)

    forward.vertical_slash_sparse_attention = indices_alone
    heads = q.shape[1]
    pattern = {str(head): ("vertical_and_slash", 512, 2048, 1) for head in range(heads)}
    k = k.repeat_interleave(heads // k.shape[1], 1)

    def plan():
        for head in range(heads):
            one = slice(head, head + 1)
            forward.minference_prefill_kernel(q[:, one], k[:, one], v, head, 0, {"best_pattern": [pattern]})

    missing = [name for name, module in sys.modules.items() if isinstance(module, StandIn)]
    note = f"; stand-ins for {', '.join(missing)}" if missing else ""
    return [("head by head, as it runs" + note, "estimate, top-k, convert_vertical_slash_indexes", plan)]


def flexprefill(q, k, v):
    module = import_part("modules.flexprefill")

    class NoLaunch:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    module.block_wise_prefill_attention_kernel = NoLaunch()
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))

    def plan():
        module.flex_prefill_attention(q, k, v, gamma=0.95, tau=0.1, min_budget=1024, block_size=BLOCK)

    return [("", "flex_prefill_attention without its attention kernel", plan)]


def xattention(q, k, v):
    module = import_part("modules.xattention")
    seqlen = q.shape[2]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    padded = 1 << (seqlen - 1).bit_length()  # the chunk that Xattention_prefill picks
    chunk = max(2048, min(padded, BLOCK * 1024 * 2048 // padded))
    properties = torch.cuda.get_device_properties

    def plan():
        module.xattn_estimate(q, k, block_size=BLOCK, stride=8, threshold=0.9, chunk_size=chunk)

    def plan_with_triton():
        # It takes its Triton kernels only where the device's name holds "100".
        torch.cuda.get_device_properties = lambda *where: Renamed(properties(*where), "H100")
        try:
            plan()
        finally:
            torch.cuda.get_device_properties = properties

    timed = f"xattn_estimate, chunks of {chunk}"
    variants = [("as it runs here", timed, plan)]
    if "100" not in properties(0).name:
        variants.append(("told to use its Triton kernels", timed, plan_with_triton))
    return variants


METHODS = {"minference": minference, "flexprefill": flexprefill, "xattention": xattention}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqlen", type=integers, default=[8192, 32768, 131072])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--num-q-heads", type=int, default=32)
    parser.add_argument("--num-kv-heads", type=int, default=8)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--methods", default=",".join(METHODS), help="of " + ", ".join(METHODS))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--format", choices=["csv", "json"], default="csv")
    arguments = parser.parse_args()
    arguments.methods = arguments.methods.split(",")
    unknown = [method for method in arguments.methods if method not in METHODS]
    if unknown:
        parser.error(f"--methods: unknown {', '.join(unknown)}; there are {', '.join(METHODS)}")
    if arguments.repeats < 1:
        parser.error("--repeats: at least 1")
    return arguments


def package_version():
    try:
        return import_part("version").VERSION
    except ImportError:
        return None


def measure(timer, method, tensors):
    """One row of columns per variant; where one fails, its reason. What the code prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        return measure_variants(timer, method, tensors)


def measure_variants(timer, method, tensors):
    try:
        variants = METHODS[method](*tensors)
    except Exception as error:  # of foreign code: whatever it is, it is the row's reason
        return [{"error": f"{type(error).__name__}: {error}".splitlines()[0]}]
    measured = []
    for variant, timed, plan in variants:
        row = {"variant": variant, "timed": timed}
        try:
            with torch.no_grad():
                times = timer(plan)
            row.update(ms=statistics.median(times), p10_ms=quantile(times, 0.1), p90_ms=quantile(times, 0.9))
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        measured.append(row)
    return measured


def main():
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("bench_planners.py: PyTorch finds no CUDA device here")
    timer = ColdTimer(arguments.warmup, arguments.repeats)
    version = package_version()
    out = []
    if arguments.format == "csv":
        print(",".join(COLUMNS))
    for seqlen in arguments.seqlen:
        heads = (arguments.num_q_heads, arguments.num_kv_heads, arguments.num_kv_heads)
        tensors = [rows(count, seqlen, arguments.head_dim, DTYPES[arguments.dtype], seed)
                   for seed, count in enumerate(heads)]
        for method in arguments.methods:
            for measured in measure(timer, method, tensors):
                row = dict.fromkeys(COLUMNS)
                row.update(seqlen=seqlen, method=method, version=version, **measured)
                out.append(row)
                if arguments.format == "csv":
                    print(",".join(csv_text(row[column]) for column in COLUMNS), flush=True)
            torch.cuda.empty_cache()
    if arguments.format == "json":
        context = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "cuda": torch.version.cuda}
        print(json.dumps({"context": context, "rows": out}, indent=1))


if __name__ == "__main__":
    main()
