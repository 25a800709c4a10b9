"""s2o: sparse attention for long-context LLM prefill, on arrays of PyTorch, NumPy, CuPy and others.

    out = s2o.attention(q, k, v, method="s2o_plus", tau=0.01)

Every method that `s2o list methods` names runs on the CPU (a reference in fp32 that reads like its
definition; slow) and on an NVIDIA GPU (sm_80 and newer; bf16 and fp16, head_dim 64, 96, 128 and
256). Attention is causal; query heads share KV heads in order, as in grouped-query attention.

On a GPU, work is enqueued in the stream that the array's library has as its current one, without
copying Q, K or V and without waiting for the device. Exceptions, which wait: the first call with
new settings or a new shape, which allocates its workspace; `return_work` and `check`; oracles and
settings that plan on the host (Work.planner says so).
"""

import json
import operator
from typing import Any, NamedTuple, Optional

from s2o import _core, _frameworks
from s2o._core import CudaError, ConfigError, Error, InputError, Plan, UnsupportedError

__version__ = "0.1.0"
__all__ = ["attention", "plan", "run", "methods", "devices", "kernels", "version", "clear_cache",
           "cache_bytes", "Result", "Work", "Plan", "Error", "ConfigError", "InputError",
           "UnsupportedError", "CudaError"]


class Work(NamedTuple):
    """What attention of one sequence took."""

    planner: str  #: where the plan was made: "cuda", "cpu", or "none" where it needs no Q and K
    compute_density: float  #: pairs of all tiles executed over those of a dense causal kernel
    pair_density: float  #: unmasked pairs executed over all causal pairs
    steps: Any  #: int32 [plan_heads, q_tiles], on the CPU: steps of block_n keys of each tile


class Result(NamedTuple):
    """Output of attention with what was asked for beside it."""

    out: Any  #: [..., heads, seqlen, head_dim]
    lse: Optional[Any] = None  #: fp32 [..., heads, seqlen], natural log; -inf: no key was visited
    work: Optional[list] = None  #: one Work a sequence


_settings = {}  # (method, parameters) -> _core.Setting


def _setting(method, params):
    # 1, 1.0 and True are equal keys, but not the same parameters.
    key = (method, *params.items(), *map(type, params.values()))
    try:
        known = _settings.get(key)
    except TypeError:  # not hashable: no legal value, and the parser says so
        return _core.setting(method, params)
    if known is None:
        if not isinstance(method, str):
            raise ConfigError(f"method: found {method!r} ({type(method).__name__}), expected a name")
        known = _settings[key] = _core.setting(method, params)
    return known


class _Inputs:
    """Q, K and V of a call, described, with outputs like Q."""

    __slots__ = ("framework", "arrays", "described", "stream")

    def __init__(self, q, k, v, contiguous):
        framework = self.framework = _frameworks.of("q", q)
        if type(k) is not type(q) or type(v) is not type(q):
            for name, other in (("k", k), ("v", v)):
                if _frameworks.of(name, other) is not framework:
                    raise InputError(f"{name}: found {_kind(other)}, expected {_kind(q)}, as q")
        if contiguous:
            q, k, v = map(framework.contiguous, (q, k, v))
        self.arrays = q, k, v  # keeps copies alive
        describe = framework.describe
        self.described = describe("q", q), describe("k", k), describe("v", v)
        self.stream = framework.stream(self.described[0])

    def outputs(self, out, out_dtype, return_lse):
        """(out, its description, lse, its description)."""
        framework, q = self.framework, self.arrays[0]
        if out is None:
            if out_dtype not in (None, "fp32"):
                raise ConfigError(f"out_dtype: found {out_dtype!r}, expected None (that of q) or 'fp32'")
            out = framework.empty(q.shape, out_dtype, q)
        elif _frameworks.of("out", out) is not framework:
            raise InputError(f"out: found {_kind(out)}, expected {_kind(q)}, as q")
        elif not framework.assigns:
            raise UnsupportedError(f"out: a {_kind(out)} cannot be written; leave it out")
        lse = framework.empty(q.shape[:-1], "fp32", q) if return_lse else None
        return (out, framework.describe("out", out), lse,
                None if lse is None else framework.describe("lse", lse))

    def result(self, out, lse, works, return_lse, return_work):
        framework = self.framework
        out = framework.finish(out)
        if not return_lse and not return_work:
            return out
        if works is not None:
            works = [Work(planner, density, pairs, framework.int32(steps, shape))
                     for planner, density, pairs, steps, shape in works]
        return Result(out, lse if lse is None else framework.finish(lse), works)


def _kind(array):
    return f"{type(array).__module__}.{type(array).__qualname__}"


def attention(q, k, v, method="s2o_plus", *, cu_seqlens=None, softmax_scale=None, out=None,
              out_dtype=None, return_lse=False, return_work=False, check=False, contiguous=False,
              **params):
    """Causal attention by a method, of the keys that it chooses.

    Args:
        q: [heads, seqlen, head_dim] or [batch, heads, seqlen, head_dim], contiguous, after RoPE;
            fp32 (CPU alone), bf16 or fp16.
        k, v: [kv_heads, seqlen, head_dim], or with batch; of the type and device of q. Query head h
            reads KV head h // (heads // kv_heads).
        method: a name of `methods()`, which gives parameters, defaults and the source of each.
        cu_seqlens: host integers [0, ..., seqlen]: sequence i is tokens [cu_seqlens[i],
            cu_seqlens[i + 1]) of arrays without batch. Sequences run one after the other; each is
            copied, since its heads do not lie together.
        softmax_scale: factor on q . k, default 1 / sqrt(head_dim).
        out: where to write, an array like q or fp32; default: a new one.
        out_dtype: of a new output, None (that of q) or "fp32" (what the accumulators hold).
        return_lse, return_work: return a Result with them; the work waits for the device.
        check: wait for the device, and raise an InputError naming the row where a score that
            planning read was not finite. The CPU always checks all of q, k and v.
        contiguous: copy arrays that are not, in place of raising an InputError.
        **params: of the method, as in configs: tau=0.01.

    Returns:
        The output, [..., heads, seqlen, head_dim]; or a Result.

    Raises:
        ConfigError: the method or a parameter is not known, or not legal.
        InputError: the arrays do not fit, with what was found and what was expected.
        UnsupportedError: this build, device or method cannot; with bytes needed and free where
            memory is too small.
        CudaError: a CUDA call failed.
    """
    setting = _setting(method, params)
    if cu_seqlens is not None:
        return _attention_of_parts(setting, q, k, v, cu_seqlens, softmax_scale, out, out_dtype,
                                   return_lse, return_work, check)
    inputs = _Inputs(q, k, v, contiguous)
    out, out_described, lse, lse_described = inputs.outputs(out, out_dtype, return_lse)
    works = _core.attend(setting, *inputs.described, out_described, lse_described,
                         _scale(softmax_scale), inputs.stream, check, return_work)
    return inputs.result(out, lse, works, return_lse, return_work)


def _scale(softmax_scale):
    if softmax_scale is None:
        return 0.0
    try:
        scale = float(softmax_scale)
    except (TypeError, ValueError):
        scale = 0.0
    if not scale > 0.0:
        raise InputError(f"softmax_scale: found {softmax_scale!r}, expected a positive number")
    return scale


def _attention_of_parts(setting, q, k, v, cu_seqlens, softmax_scale, out, out_dtype, return_lse,
                        return_work, check):
    framework = _frameworks.of("q", q)
    if not framework.assigns:
        raise UnsupportedError(f"cu_seqlens: a {_kind(q)} cannot be written in parts; call attention() "
                               "for each sequence")
    if len(q.shape) != 3:
        raise InputError(f"q: shape is {list(q.shape)}, expected [heads, seqlen, head_dim] with cu_seqlens")
    for name, other in (("k", k), ("v", v)):
        if len(other.shape) != 3 or other.shape[1] != q.shape[1]:
            raise InputError(f"{name}: shape is {list(other.shape)}, expected [kv_heads, {q.shape[1]}, "
                             f"{q.shape[2]}], with q of {list(q.shape)}")
    ends = _host_integers(cu_seqlens)
    if (len(ends) < 2 or ends[0] != 0 or ends[-1] != q.shape[1] or
            any(a >= b for a, b in zip(ends, ends[1:]))):
        raise InputError(f"cu_seqlens: found {ends}, expected ascending integers from 0 to {q.shape[1]}")
    if out is None:
        if out_dtype not in (None, "fp32"):
            raise ConfigError(f"out_dtype: found {out_dtype!r}, expected None (that of q) or 'fp32'")
        out = framework.empty(q.shape, out_dtype, q)
    elif tuple(out.shape) != tuple(q.shape):
        raise InputError(f"out: shape is {list(out.shape)}, expected {list(q.shape)} as q")
    lse = framework.empty(q.shape[:-1], "fp32", q) if return_lse else None
    works = [] if return_work else None
    for begin, end in zip(ends, ends[1:]):
        inputs = _Inputs(*(x[:, begin:end] for x in (q, k, v)), contiguous=True)
        part = framework.empty(inputs.arrays[0].shape, None, out)
        _, described, part_lse, lse_described = inputs.outputs(part, None, return_lse)
        work = _core.attend(setting, *inputs.described, described, lse_described,
                            _scale(softmax_scale), inputs.stream, check, return_work)
        result = inputs.result(part, part_lse, work, return_lse, True)
        out[:, begin:end] = result.out
        if return_lse:
            lse[:, begin:end] = result.lse
        if return_work:
            works += result.work
    if not return_lse and not return_work:
        return out
    return Result(out, lse, works)


def _host_integers(values):
    device = getattr(values, "device", None)
    if getattr(device, "type", "cpu") != "cpu" or type(values).__module__.startswith("cupy"):
        raise InputError(f"cu_seqlens: is on {device}, expected host integers; cu_seqlens.tolist() waits "
                         "for the device")
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise InputError(f"cu_seqlens: found {values!r}, expected integers") from None


def plan(q, k, v, method="s2o_plus", *, softmax_scale=None, check=False, contiguous=False,
         **params) -> Plan:
    """What a method decides to visit, kept, for `run`. Arguments as of `attention`.

    Whoever plans in one stream and runs in another orders the streams.

    Returns:
        A Plan: `method`, `params`, `planner` (as Work.planner), `shape` and `bytes`.
    """
    setting = _setting(method, params)
    inputs = _Inputs(q, k, v, contiguous)
    return _core.plan(setting, *inputs.described, _scale(softmax_scale), inputs.stream, check)


def run(plan, q, k, v, *, out=None, out_dtype=None, return_lse=False, return_work=False,
        check=False, contiguous=False):
    """Attention over a plan. Q, K and V have the shape, type and device that it was made for; their
    values may be others. Arguments and result as of `attention`."""
    if not isinstance(plan, Plan):
        raise InputError(f"plan: found {_kind(plan)}, expected what s2o.plan() returns")
    inputs = _Inputs(q, k, v, contiguous)
    out, out_described, lse, lse_described = inputs.outputs(out, out_dtype, return_lse)
    works = _core.run(plan, *inputs.described, out_described, lse_described, inputs.stream, check,
                      return_work)
    return inputs.result(out, lse, works, return_lse, return_work)


def methods() -> list:
    """All methods, as `s2o list methods --format json`: a list of dicts with name, title, source,
    summary, knob (the parameter that trades error for density) and params, each with name, type,
    default, min, max, choices and help."""
    return json.loads(_core.methods_json())


def devices() -> list:
    """(name, usable, detail) of the CPU and of each CUDA device; detail says why one is not usable."""
    return _core.devices()


def kernels() -> list:
    """(name, usable, detail) of each attention kernel of this build."""
    return _core.kernels()


def version() -> str:
    """Version and commit."""
    return _core.version()


def clear_cache() -> None:
    """Frees the GPU memory that calls keep for the next ones: workspaces of settings and shapes, per
    device and stream, at most an eighth of a device's memory. Waits for the device."""
    _core.clear_cache()


def cache_bytes() -> int:
    """Bytes of GPU memory that calls keep."""
    return _core.cache_bytes()
