"""What gguf_to_hf.py reads of a GGUF file: keys, tensors and their values, with errors that name them."""

import math
import struct
import sys

try:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize
except ImportError as error:
    sys.exit(f"gguf_to_hf.py: {error}; install the Python package gguf: python3 -m venv venv && "
             "venv/bin/pip install gguf, then venv/bin/python in place of python3")


class Refused(Exception):
    """The file cannot be converted; the message says what was found and what is supported."""


ARCHITECTURES = {"llama": ("LlamaForCausalLM", "llama"),
                 "qwen2": ("Qwen2ForCausalLM", "qwen2"),
                 "qwen3": ("Qwen3ForCausalLM", "qwen3")}
KIND_NAMES = {int: "an integer", str: "a string", list: "a list", bool: "true or false"}


class Metadata:
    """Key-value pairs of the file, with errors that name the key."""

    def __init__(self, reader):
        self.fields = reader.fields
        self.arch = self.get("general.architecture", kind=str)
        if self.arch not in ARCHITECTURES:
            raise Refused(f"general.architecture: found '{self.arch}', supported: "
                          f"{', '.join(ARCHITECTURES)}")
        if self.optional("split.count", int, 1) > 1:
            raise Refused(f"split.count: one of {self.get('split.count')} files that hold the model, "
                          "supported: one file (llama-gguf-split --merge makes it)")

    def get(self, key, default=None, kind=None):
        field = self.fields.get(key)
        if field is None:
            if default is None and kind is not None:
                raise Refused(f"{key}: missing")
            return default
        try:
            value = field.contents()
        except UnicodeDecodeError as error:
            raise Refused(f"{key}: found {error.object[:60]!r}, expected UTF-8") from None
        if kind is not None and (not isinstance(value, kind) or kind is int and value is True):
            raise Refused(f"{key}: found {str(value)[:60]!r}, expected {KIND_NAMES[kind]}")
        return value

    def optional(self, key, kind, default=None):
        return self.get(key, kind=kind) if key in self.fields else default

    def model(self, key, default=None, kind=None):
        return self.get(f"{self.arch}.{key}", default, kind)

    def number(self, key, default=None):
        """A positive number of the model; without a default it has to be there."""
        value = self.model(key, default)
        name = f"{self.arch}.{key}"
        if value is None:
            raise Refused(f"{name}: missing")
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not (math.isfinite(value) and value > 0):
            raise Refused(f"{name}: found {str(value)[:60]!r}, expected a positive number")
        return float(value)

    def token_id(self, name, num_tokens):
        """Of a special token; None without one, or where it is no token (as llama.cpp has it)."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.optional(key, int)
        if value is None or 0 <= value < num_tokens:
            return value
        print(f"gguf_to_hf.py: warning: {key}: found {value}, ignored, as there are {num_tokens} "
              "tokens", file=sys.stderr)
        return None

    def size(self, key, default=None):
        value = self.model(key, default, None if default is not None else int)
        if isinstance(value, list):  # one value a layer, in files of newer converters
            if len(set(value)) != 1:
                raise Refused(f"{self.arch}.{key}: differs between layers, supported: one value")
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refused(f"{self.arch}.{key}: found {value!r}, expected a positive integer")
        return value


def shape_of(tensor):
    """Row-major, as safetensors has it; GGUF gives the fastest dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def read_tensor(tensor):
    try:
        return dequantize(tensor.data, tensor.tensor_type).reshape(shape_of(tensor))
    except NotImplementedError:
        raise Refused(f"tensor '{tensor.name}': quantisation {type_name(tensor)} cannot be read "
                      f"by this gguf package; supported: {', '.join(readable_types())}") from None


def type_name(tensor):
    return getattr(tensor.tensor_type, "name", str(tensor.tensor_type))


def readable_types():
    from gguf import quants
    types = [GGMLQuantizationType.F32, GGMLQuantizationType.F16]
    return sorted(t.name for t in [*types, *getattr(quants, "_type_traits", {})])


SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32


class Header:
    """Walks through keys and tensors before GGUFReader does, which believes every length: all of the
    file lies in the file, nothing comes twice, and tensors follow each other without gaps, as
    llama.cpp demands."""

    def __init__(self, file, size):
        self.file, self.size, self.where = file, size, "header"
        self.alignment = DEFAULT_ALIGNMENT
        self.check_start()
        num_tensors, num_keys = self.number("<Q"), self.number("<Q")
        self.names = set()
        for i in range(num_keys):
            self.where = f"key {i} of {num_keys}"
            self.key()
        tensors = [self.tensor(i, num_tensors) for i in range(num_tensors)]
        start = self.padded(file.tell())
        place = 0
        for name, offset, num_bytes in tensors:
            if offset != place:
                raise Refused(f"tensor '{name}': offset is {offset}, expected {place}, where the tensor "
                              "before it ends")
            if start + offset + num_bytes > size:
                raise Refused(f"cut off: tensor '{name}' ends at byte {start + offset + num_bytes}, the "
                              f"file has {size}")
            place = self.padded(offset + num_bytes)

    def check_start(self):
        magic = self.file.read(4)
        if magic != b"GGUF":
            raise Refused(f"begins with {magic!r}, expected b'GGUF'")
        version = self.number("<I")
        if version not in (2, 3):
            raise Refused("big-endian, supported: little-endian" if version in (2 << 24, 3 << 24) else
                          f"version {version} of the format, supported: 2 and 3")

    def padded(self, place):
        return -(-place // self.alignment) * self.alignment

    def take(self, count):
        begin = self.file.tell()
        if begin + count > self.size:
            raise Refused(f"cut off or broken: {self.where}: {count} bytes from byte {begin} on, the "
                          f"file has {self.size}")
        return begin + count

    def number(self, code):
        size = struct.calcsize(code)
        self.take(size)
        return struct.unpack(code, self.file.read(size))[0]

    def string(self):
        size = self.number("<Q")
        self.take(size)
        return self.file.read(size)

    def name(self):
        text = self.string()
        try:
            name = text.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(f"{self.where}: its name is {text[:60]!r}, expected UTF-8") from None
        if name in self.names:
            raise Refused(f"{self.where}: a second '{name}'")
        self.names.add(name)
        return name

    def key(self):
        name = self.name()
        self.where = f"key '{name}'"
        kind = self.number("<I")
        count = 1
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
        if name == "general.alignment":
            self.alignment = self.number("<I") if (kind, count) == (4, 1) else 0
            if self.alignment < 1 or self.alignment % 8 != 0:
                raise Refused("general.alignment: expected a multiple of 8 as uint32")
        elif kind in SCALAR_BYTES:
            self.file.seek(self.take(count * SCALAR_BYTES[kind]))
        elif kind == STRING:
            for _ in range(count):
                size = self.number("<Q")
                self.file.seek(self.take(size))
        else:
            raise Refused(f"{self.where}: type {kind}, supported: numbers, strings, and arrays of them")

    def tensor(self, i, count):
        """(name, offset, bytes)"""
        self.where = f"tensor {i} of {count}"
        name = self.name()
        self.where = f"tensor '{name}'"
        num_dims = self.number("<I")
        if not 1 <= num_dims <= 4:
            raise Refused(f"{self.where}: {num_dims} dimensions, expected 1 to 4")
        dims = [self.number("<Q") for _ in range(num_dims)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in {int(known) for known in GGML_QUANT_SIZES}:
            raise Refused(f"{self.where}: quantisation {kind} cannot be read by this gguf package; "
                          f"supported: {', '.join(readable_types())}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if dims[0] % block != 0:
            raise Refused(f"{self.where}: rows of {dims[0]} values, expected whole blocks of {block} "
                          f"({GGMLQuantizationType(kind).name})")
        return name, offset, math.prod(dims) // block * block_bytes


def open_gguf(path):
    if not path.is_file():
        raise Refused("no such file")
    with open(path, "rb") as file:
        Header(file, path.stat().st_size)
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader fails anywhere
        raise Refused(f"broken: {error!r}") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise Refused("tensor 'token_embd.weight': missing")
    if len(shape_of(tensors["token_embd.weight"])) != 2:
        raise Refused("tensor 'token_embd.weight': shape is "
                      f"{list(shape_of(tensors['token_embd.weight']))}, expected two dimensions")
    return reader, tensors
