"""Arrays of CuPy and of JAX, which stands for any library with DLPack."""

import os

import numpy
import pytest

import s2o

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
SPARSE = {"method": "s2o_plus", "tau": 0.1}


def jax_arrays(qkv, kind):
    jax = pytest.importorskip("jax")
    try:
        device = jax.devices(kind)[0]
    except RuntimeError as error:
        pytest.skip(str(error))
    return jax, tuple(jax.device_put(jax.numpy.asarray(x, "bfloat16"), device) for x in qkv)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_jax(qkv, kind):
    jax, arrays = jax_arrays(qkv, kind)
    found = s2o.attention(*arrays, return_lse=True, return_work=True, **SPARSE)
    assert isinstance(found.out, jax.Array) and found.out.dtype == jax.numpy.bfloat16
    assert found.out.devices() == arrays[0].devices() and found.lse.shape == (3, 1024)
    exact = s2o.attention(*qkv, **SPARSE)
    error = numpy.linalg.norm(numpy.asarray(found.out, "float32") - exact) / numpy.linalg.norm(exact)
    assert error < 0.02
    if kind == "cpu":
        assert (numpy.asarray(s2o.attention(*arrays, out_dtype="fp32", **SPARSE)) == exact).all()
    plan = s2o.plan(*arrays, **SPARSE)
    assert (s2o.run(plan, *arrays) == found.out).all()
    with pytest.raises(s2o.UnsupportedError, match="contiguous=True"):
        s2o.attention(*arrays, contiguous=True)
    with pytest.raises(s2o.UnsupportedError, match="out: a jaxlib.* cannot be written"):
        s2o.attention(*arrays, out=jax.numpy.zeros_like(arrays[0]))
    with pytest.raises(s2o.UnsupportedError, match="cu_seqlens: a jaxlib.* cannot be written in parts"):
        s2o.attention(*arrays, cu_seqlens=[0, 1024])
    with pytest.raises(s2o.InputError, match="DLPack code 0 of 32 bits, expected fp32, bf16 or fp16"):
        s2o.attention(arrays[0].astype("int32"), *arrays[1:])


def test_cupy(qkv):
    cupy = pytest.importorskip("cupy")
    try:
        cupy.cuda.Device(0).compute_capability
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(str(error))
    host = [x.astype(numpy.float16) for x in qkv]
    expected = s2o.attention(*host, out_dtype="fp32", **SPARSE)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        arrays = [cupy.asarray(x) for x in host]
        found = s2o.attention(*arrays, return_lse=True, **SPARSE)
        stream.synchronize()
        assert isinstance(found.out, cupy.ndarray) and found.out.dtype == cupy.float16
        out = found.out.get().astype(numpy.float32)
    assert numpy.linalg.norm(out - expected) / numpy.linalg.norm(expected) < 0.02
    with pytest.raises(s2o.InputError, match="q: strides are"):
        s2o.attention(*(x[:, ::2] for x in arrays))


def test_capsules_without_a_namespace_are_refused(qkv):
    class Holder:
        def __dlpack__(self, **options):
            return qkv[0].__dlpack__()

        def __dlpack_device__(self):
            return qkv[0].__dlpack_device__()

    with pytest.raises(s2o.InputError, match="no __array_namespace__"):
        s2o.attention(Holder(), Holder(), Holder())
