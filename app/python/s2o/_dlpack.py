"""Arrays of any library with DLPack, JAX for one. Slower than _frameworks' own: arrays pass through
capsules, and outputs are s2o's memory, which the library adopts once they are there."""

from s2o import _core

_CPU = 1  # kDLCPU
_CUDA = 2  # kDLCUDA
_DEFAULT_STREAM = 1  # CUDA's legacy default stream in DLPack's numbers; that of calls on a GPU


class _Producer:
    """An OwnArray as DLPack wants to see it."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        device = self.array.describe()[4]
        return (_CPU, 0) if device < 0 else (_CUDA, device)

    def __dlpack__(self, **options):
        return self.array.to_dlpack()


class DLPack:
    """One library: that of the array."""

    assigns = False

    def __init__(self, array):
        kind = type(array)
        if not hasattr(array, "__array_namespace__"):
            raise _core.InputError(
                f"q: {kind.__module__}.{kind.__qualname__} has __dlpack__ and no __array_namespace__, "
                "whose from_dlpack would adopt the output")
        self.adopt = array.__array_namespace__().from_dlpack

    def describe(self, name, array):
        if isinstance(array, _core.OwnArray):
            return array.describe()
        kind, _ = array.__dlpack_device__()
        # The library makes the default stream wait for what still writes the array.
        capsule = array.__dlpack__(stream=_DEFAULT_STREAM) if kind == _CUDA else array.__dlpack__()
        return _core.describe_capsule(name, capsule)

    def empty(self, shape, dtype, like):
        described = self.describe("q", like)
        return _core.OwnArray(list(shape), dtype or described[3], described[4])

    def contiguous(self, array):
        kind = type(array)
        raise _core.UnsupportedError(
            f"contiguous=True: s2o cannot copy a {kind.__module__}.{kind.__qualname__}; its own library "
            "can")

    def stream(self, described):
        return 0

    def int32(self, data, shape):
        import numpy

        return numpy.frombuffer(data, numpy.int32).reshape(shape)

    def finish(self, array):
        if not isinstance(array, _core.OwnArray):
            return array
        array.finish()
        return self.adopt(_Producer(array))
