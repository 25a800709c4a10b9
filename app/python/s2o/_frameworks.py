"""What s2o asks of the libraries that own arrays: where an array lies, a new one like it, and the
stream that its work is in. NumPy, PyTorch and CuPy by their own attributes, which cost less than a
microsecond; any other library by DLPack.

A description, as s2o._core takes it, is (address, shape, strides in elements or None where
contiguous, dtype, device): dtype "fp32", "bf16", "fp16" or the library's own name, device -1 for
the CPU, else the number of the CUDA device. An array whose type has DLPack's exchange API describes
itself, and names its stream: None.
"""

from s2o import _core

CPU = -1
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _elements(byte_strides, itemsize):
    """Strides of bytes in elements; none where they are no whole elements."""
    if byte_strides is None or any(stride % itemsize for stride in byte_strides):
        return None
    return tuple(stride // itemsize for stride in byte_strides)


class NumPy:
    """Arrays of NumPy, on the CPU. bfloat16 is that of ml_dtypes."""

    assigns = True  # to slices

    def __init__(self):
        import numpy

        self.lib = numpy

    def describe(self, name, array):
        if isinstance(array, self.lib.ma.MaskedArray):
            raise _core.InputError(f"{name}: found a masked array, expected an array without a mask")
        if not array.flags.aligned or (name == "out" and not array.flags.writeable):
            raise _core.InputError(f"{name}: is {'not aligned' if not array.flags.aligned else 'read-only'}, "
                                   "expected an aligned array, an output a writeable one")
        if not array.dtype.isnative:
            raise _core.InputError(f"{name}: dtype is {array.dtype.str}, expected native byte order")
        strides = None if array.flags.c_contiguous else _elements(array.strides, array.itemsize)
        if strides is None and not array.flags.c_contiguous:
            raise _core.InputError(f"{name}: strides are {array.strides} bytes, expected whole elements")
        return (array.__array_interface__["data"][0], array.shape, strides,
                _DTYPES.get(array.dtype.name, array.dtype.name), CPU)

    def empty(self, shape, dtype, like):
        return self.lib.empty(shape, like.dtype if dtype is None else self.lib.float32)

    def contiguous(self, array):
        return self.lib.ascontiguousarray(array)

    def stream(self, described):
        return 0

    def int32(self, data, shape):
        return self.lib.frombuffer(data, self.lib.int32).reshape(shape)

    def finish(self, array):
        return array


class Torch:
    """Tensors of PyTorch."""

    assigns = True  # to slices

    def __init__(self):
        import torch

        self.lib = torch
        self.dtypes = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        self.strided, self.contiguous_format = torch.strided, torch.contiguous_format
        self.empty_like, self.grad_enabled = torch.empty_like, torch.is_grad_enabled
        self.plain = torch.Tensor
        self.describes_itself = _core.has_exchange_api(torch.Tensor)  # since 2.10

    def describe(self, name, tensor):
        on_gpu = tensor.is_cuda
        if not on_gpu and not tensor.is_cpu:
            raise _core.InputError(f"{name}: is on {tensor.device}, expected cpu or cuda")
        if tensor.layout is not self.strided:
            raise _core.InputError(f"{name}: layout is {tensor.layout}, expected a strided tensor")
        if tensor.is_nested or tensor.is_neg():
            found = "nested" if tensor.is_nested else "negated when read (resolve_neg() does it now)"
            raise _core.InputError(f"{name}: is {found}, expected a tensor of one shape as it lies in memory")
        if tensor.requires_grad and self.grad_enabled():
            raise _core.UnsupportedError(
                f"{name}: requires a gradient, and s2o has no backward pass; call it under "
                "torch.no_grad(), or detach()")
        dtype = self.dtypes.get(tensor.dtype)
        # A subclass may be anything: a tensor without memory, or one of several tensors.
        if self.describes_itself and tensor.__class__ is self.plain and dtype is not None:
            return tensor
        try:
            address = tensor.data_ptr()
        except RuntimeError as error:
            raise _core.InputError(f"{name}: its library says: {str(error).splitlines()[0]}; expected an "
                                   "array with values") from None
        return (address, tensor.shape, None if tensor.is_contiguous() else tensor.stride(),
                dtype or str(tensor.dtype), tensor.get_device() if on_gpu else CPU)

    def empty(self, shape, dtype, like):
        if dtype is None and shape == like.shape:
            return self.empty_like(like, memory_format=self.contiguous_format)
        return like.new_empty(shape, dtype=like.dtype if dtype is None else self.lib.float32)

    def contiguous(self, tensor):
        return tensor.contiguous()

    def stream(self, described):
        if described.__class__ is not tuple:
            return None
        device = described[4]
        return 0 if device == CPU else self.lib.cuda.current_stream(device).cuda_stream

    def int32(self, data, shape):
        return self.lib.frombuffer(bytearray(data), dtype=self.lib.int32).reshape(shape)

    def finish(self, tensor):
        return tensor


class CuPy:
    """Arrays of CuPy."""

    assigns = True  # to slices

    def __init__(self):
        import cupy

        self.lib = cupy

    def describe(self, name, array):
        strides = None if array.flags.c_contiguous else _elements(array.strides, array.itemsize)
        return (array.data.ptr, array.shape, strides, _DTYPES.get(array.dtype.name, array.dtype.name),
                array.device.id)

    def empty(self, shape, dtype, like):
        with like.device:
            return self.lib.empty(shape, like.dtype if dtype is None else self.lib.float32)

    def contiguous(self, array):
        return self.lib.ascontiguousarray(array)

    def stream(self, described):
        with self.lib.cuda.Device(described[4]):
            return self.lib.cuda.get_current_stream().ptr

    def int32(self, data, shape):
        import numpy

        return numpy.frombuffer(data, numpy.int32).reshape(shape)

    def finish(self, array):
        return array


_FRAMEWORKS = {"numpy": NumPy, "torch": Torch, "cupy": CuPy}
_known = {}  # type of array -> framework


def of(name, array):
    """The framework of an array. InputError for what is no array."""
    kind = type(array)
    framework = _known.get(kind)
    if framework is not None:
        return framework
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root in _FRAMEWORKS and base.__name__ in ("ndarray", "Tensor"):
            made = next((f for f in _known.values() if type(f) is _FRAMEWORKS[root]), None)
            _known[kind] = made or _FRAMEWORKS[root]()
            return _known[kind]
    if hasattr(array, "__dlpack__"):
        from s2o import _dlpack

        _known[kind] = _dlpack.DLPack(array)
        return _known[kind]
    raise _core.InputError(
        f"{name}: found {kind.__module__}.{kind.__qualname__}, expected an array of NumPy, PyTorch, "
        "CuPy or another library with DLPack")
