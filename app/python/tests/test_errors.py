"""Whatever a call is given, the interpreter lives, and the exception says what was found and what
was expected."""

import numpy
import pytest

import s2o


def raises(error, text, call, *args, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert text in str(caught.value)
    assert isinstance(caught.value, s2o.Error)


@pytest.mark.parametrize("call", [s2o.attention, s2o.plan])
@pytest.mark.parametrize("params, text", [
    ({"tuu": 0.1}, "s2o_plus.tuu: unknown key, did you mean 'tau'?"),
    ({"compute": "fp8"}, 's2o_plus.compute: found "fp8", expected no such key here'),
    ({"tau": "much"}, 's2o_plus.tau: found "much" (string), expected a number'),
    ({"tau": True}, "s2o_plus.tau: found true (boolean), expected a number"),
    ({"tau": [0.1, 0.2]}, "s2o_plus.tau: found [0.1, 0.2] (list), expected one number"),
    ({"tau": float("nan")}, "s2o_plus.tau: found nan"),
    ({"tau": 2**80}, "s2o_plus.tau: found an integer of more than 64 bits"),
    ({"segment_size": 0.5}, "s2o_plus.segment_size: found 0.5"),
    ({"ranking": "mena"}, "did you mean 'mean'?"),
    ({"method": "s2o_pluss"}, "did you mean 's2o_plus'?"),
    ({"method": 3}, "method: found 3 (int), expected a name"),
])
def test_settings(qkv, call, params, text):
    raises(s2o.ConfigError, text, call, *qkv, **params)


def test_equal_keys_are_not_equal_parameters(qkv):
    s2o.attention(*qkv, tau=1)
    raises(s2o.ConfigError, "found true (boolean)", s2o.attention, *qkv, tau=True)


def test_shapes(qkv):
    q, k, v = qkv
    raises(s2o.InputError, "q: shape is [1024, 64], expected [heads, seqlen, head_dim]",
           s2o.attention, q[0], k[0], v[0])
    raises(s2o.InputError, "q: shape is [1, 1, 3, 1024, 64]", s2o.attention, q[None, None], k, v)
    raises(s2o.InputError, "k: shape is [1, 5, 64], expected [1, 1024, 64]", s2o.attention, q,
           k[:, :5].copy(), v)
    raises(s2o.InputError, "v: shape is [1, 1024, 32], expected [1, 1024, 64]", s2o.attention, q, k,
           v[..., :32].copy())
    raises(s2o.InputError, "3 query heads are not a multiple of 2 KV heads", s2o.attention, q,
           q[:2], q[:2])
    raises(s2o.InputError, "q: shape is [3, 0, 64], expected no empty extent", s2o.attention,
           *(x[:, :0] for x in qkv))
    raises(s2o.InputError, "out: shape is [3, 5, 64], expected [3, 1024, 64]", s2o.attention, *qkv,
           out=numpy.empty((3, 5, 64), numpy.float32))
    raises(s2o.InputError, "k: shape is [1, 1024, 64], expected [2, 3, 1024, 64]", s2o.attention,
           numpy.stack([q, q]), k, v)


def test_types(qkv):
    q, k, v = qkv
    raises(s2o.InputError, "q: dtype is float64, expected fp32, bf16 or fp16", s2o.attention,
           q.astype(numpy.float64), k, v)
    raises(s2o.InputError, "q: dtype is int32", s2o.attention, q.astype(numpy.int32), k, v)
    raises(s2o.InputError, "k: dtype is fp16, expected fp32", s2o.attention, q,
           k.astype(numpy.float16), v)
    raises(s2o.InputError, "out: dtype is fp16, expected fp32", s2o.attention, *qkv,
           out=numpy.empty_like(q, numpy.float16))
    raises(s2o.InputError, "expected native byte order", s2o.attention, q.astype(">f4"), k, v)
    raises(s2o.ConfigError, "out_dtype: found 'fp64'", s2o.attention, *qkv, out_dtype="fp64")
    raises(s2o.InputError, "q: found builtins.list, expected an array", s2o.attention, [1.0], k, v)
    raises(s2o.InputError, "k: found builtins.NoneType", s2o.attention, q, None, v)
    raises(s2o.InputError, "plan: found builtins.str", s2o.run, "plan", *qkv)
    for scale in (0.0, -1.0, float("nan"), float("inf"), "much"):
        raises(s2o.InputError, "softmax_scale: found", s2o.attention, *qkv, softmax_scale=scale)


def test_strides_are_copied_only_on_request(qkv):
    q, k, v = qkv
    by_token = numpy.ascontiguousarray(q.transpose(1, 0, 2)).transpose(1, 0, 2)
    raises(s2o.InputError, "q: strides are [64, 192, 1] for shape [3, 1024, 64], expected a "
           "contiguous array; contiguous=True copies", s2o.attention, by_token, k, v)
    raises(s2o.InputError, "k: strides are [65536, -64, 1]", s2o.attention, q, k[:, ::-1], v)
    numpy.testing.assert_array_equal(s2o.attention(by_token, k, v, contiguous=True),
                                     s2o.attention(q, k, v))
    raises(s2o.InputError, "out: strides are", s2o.attention, *qkv,
           out=numpy.empty((1024, 3, 64), numpy.float32).transpose(1, 0, 2))


def test_outputs_that_cannot_be_written(qkv):
    q, k, v = qkv
    own = q.copy()
    raises(s2o.InputError, "out: shares memory with q, expected an array of its own", s2o.attention,
           own, k, v, out=own)
    both = numpy.empty((4, 1024, 64), numpy.float32)
    both[3] = k[0]
    raises(s2o.InputError, "out: shares memory with k", s2o.attention, q, both[3:], v, out=both[1:])
    s2o.attention(q, both[3:], v, out=both[:3])
    fixed = numpy.empty_like(q)
    fixed.flags.writeable = False
    raises(s2o.InputError, "out: is read-only", s2o.attention, *qkv, out=fixed)


def test_arrays_that_are_more_than_their_memory(qkv):
    q, k, v = qkv
    raises(s2o.InputError, "q: found a masked array", s2o.attention, *map(numpy.ma.masked_array, qkv))
    odd = numpy.frombuffer(b"x" + q.tobytes(), numpy.uint8)[1:].view(numpy.float32).reshape(q.shape)
    raises(s2o.InputError, "q: is not aligned", s2o.attention, odd, k, v)


def test_values_that_are_not_finite(qkv):
    for position, name in enumerate("qkv"):
        for value in (numpy.nan, numpy.inf):
            arrays = [x.copy() for x in qkv]
            arrays[position][0, 17, 5] = value
            raises(s2o.InputError, f"{name}: found {value} at head 0, token 17, dim 5, expected finite",
                   s2o.attention, *arrays)


def test_a_plan_is_of_its_shape(qkv):
    plan = s2o.plan(*qkv)
    shorter = [x[:, :512].copy() for x in qkv]
    raises(s2o.InputError, "the plan was made for 1 x 3 query and 1 KV heads of 1024 tokens x 64",
           s2o.run, plan, *shorter)
    raises(s2o.InputError, "fp16 on cpu, the plan was made for", s2o.run, plan,
           *(x.astype(numpy.float16) for x in qkv))


@pytest.mark.parametrize("ends", [[], [0], [0, 1023], [1, 1024], [0, 5, 5, 1024], [0, 7, 3, 1024],
                                  ["a", "b"], 7, [0, 2000], [0, 1.5, 1024]])
def test_ends_of_sequences(qkv, ends):
    raises(s2o.InputError, "cu_seqlens: found", s2o.attention, *qkv, cu_seqlens=ends)


def test_settings_that_cannot_run(qkv):
    raises(s2o.Error, "", s2o.attention, *qkv, "s2o", segment_size=100)


def test_descriptions_that_lie_are_refused():
    from s2o import _core

    setting = _core.setting("dense", {})
    good = (4096, (1, 64, 64), None, "fp32", -1)
    for bad in [(0,), (0, 1, 2, 3, 4), ("x", (1, 64, 64), None, "fp32", -1), (4096, "abc", None, "fp32", -1)]:
        with pytest.raises((TypeError, RuntimeError, IndexError, ValueError)):
            _core.attend(setting, bad, good, good, good, None, 0.0, 0, False, False)
    with pytest.raises(TypeError):
        _core.attend("dense", good, good, good, good, None, 0.0, 0, False, False)
