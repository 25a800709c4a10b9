#!/usr/bin/env python3
"""Makes the tensor files under data/fixtures/formats with software that is not ours.

Every tensor has shape [2, 3, 4] unless its name says otherwise, and element i of the flattened
tensor is value(i): multiples of 1/4 small enough for every dtype, or their integer part times 4.
lib/input/tests/format_fixture_test.cpp knows the same rule.

  apt install python3-numpy python3-h5py
  /usr/bin/python3 scripts/make_format_fixtures.py [--out data/fixtures/formats]

The committed files were made with numpy 1.24.2 and h5py 3.7.0. Running the script again gives the
same bytes, except for time stamps inside the .npz and .h5 files.
"""

import argparse
import io
import json
import pathlib
import struct
import zipfile

import h5py
import numpy as np

SHAPE = (2, 3, 4)
NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4",
           "U16": "<u2", "I16": "<i2", "U8": "|u1", "I8": "|i1", "BOOL": "|b1"}


def tensor(dtype, shape=SHAPE):
    """value(i) = (7 i mod 37 - 18) / 4; integers: 7 i mod 37 - 18, unsigned 7 i mod 37; bool: i % 3 == 0."""
    dtype = np.dtype(dtype)
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    residue = 7 * i % 37
    values = {"f": (residue - 18) / 4, "i": residue - 18, "u": residue, "b": i % 3 == 0}[dtype.kind]
    return values.astype(dtype).reshape(shape)


def bfloat16_bits(shape=SHAPE):
    """value(i) is exact in bfloat16, so its bits are the upper half of the fp32 ones."""
    return (tensor("<f4", shape).view("<u4") >> 16).astype("<u2")


def write_npy(out):
    for name, code in NUMBERS.items():
        np.save(out / f"numpy_{name}.npy", tensor(code))
    np.save(out / "numpy_fortran.npy", np.asfortranarray(tensor("<f4")))
    np.save(out / "numpy_scalar.npy", tensor("<f4", ()))
    np.save(out / "numpy_vector.npy", tensor("<f4", (5,)))
    np.save(out / "numpy_empty.npy", tensor("<f4", (0, 4)))
    for version in [(2, 0), (3, 0)]:
        with open(out / f"numpy_version_{version[0]}.npy", "wb") as file:
            np.lib.format.write_array(file, tensor("<f4"), version=version)
    # What our reader refuses.
    np.save(out / "refused_big_endian.npy", tensor(">f4"))
    np.save(out / "refused_void.npy", bfloat16_bits().view("V2"))
    np.save(out / "refused_structured.npy", np.zeros(3, dtype=[("a", "<f4"), ("b", "<i4")]))
    np.save(out / "refused_complex.npy", np.zeros(3, dtype="<c8"))
    np.save(out / "refused_object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


class Unseekable(io.RawIOBase):
    """A pipe to zipfile: sizes then follow the data instead of standing before it."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


def write_npz(out):
    arrays = {"q": tensor("<f2"), "k": tensor("<f4"), "v": np.asfortranarray(tensor("<f8"))}
    np.savez(out / "numpy_stored.npz", **arrays)
    np.savez_compressed(out / "numpy_deflated.npz", **arrays)
    with open(out / "numpy_streamed.npz", "wb") as file:
        with zipfile.ZipFile(Unseekable(file), "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(name + ".npy", buffer.getvalue())
            archive.writestr("README.txt", "not an array")
            archive.comment = b"a comment behind the directory"


def write_hdf5(out):
    with h5py.File(out / "h5py.h5", "w") as file:
        for name, code in NUMBERS.items():
            file[name] = tensor(code)
        file["group/deeper/q"] = tensor("<f4")
        file["big_endian_F32"] = tensor(">f4")
        file["big_endian_F16"] = tensor(">f2")
        file["scalar"] = tensor("<f4", ())
        file.create_dataset("chunked", data=tensor("<f4"), chunks=(1, 2, 3))
        file.create_dataset("packed", data=tensor("<f4"), chunks=SHAPE, compression="gzip", shuffle=True,
                            fletcher32=True)
        file["BF16"] = bfloat16_bits()
        file["BF16"].attrs["dtype"] = "bfloat16"
        file["BF16_fixed"] = bfloat16_bits()
        file["BF16_fixed"].attrs["dtype"] = np.bytes_("bfloat16")
        file.attrs["model"] = "made-up"
        file.attrs["layers"] = 3
        # What our reader leaves out or refuses.
        file["text"] = "no tensor"
        file["refused_complex"] = np.zeros(3, dtype="<c8")
        file["refused_null"] = h5py.Empty("<f4")
        file.create_dataset("refused_unwritten", shape=(4, 5), dtype="<f4")
        half = file.create_dataset("refused_half_written", shape=(4, 4), dtype="<f4", chunks=(2, 4))
        half[:2] = 1
        file.create_dataset("refused_sparse", shape=(1 << 40, 1 << 20), dtype="<f4", chunks=(1, 1024))
        file["soft"] = h5py.SoftLink("/F32")
        file["group/loop"] = h5py.SoftLink("/group")
        file["outside"] = h5py.ExternalLink("other.h5", "/F32")


def write_safetensors(out):
    """Packed by hand from the format's description: header order differs from data order."""
    bits = bfloat16_bits().tobytes()
    single = tensor("<f4").tobytes()
    half = tensor("<f2").tobytes()
    ids = tensor("<i8", (5,)).tobytes()
    header = {
        "v": {"dtype": "F16", "shape": list(SHAPE),
              "data_offsets": [len(bits) + len(single), len(bits) + len(single) + len(half)]},
        "q": {"dtype": "BF16", "shape": list(SHAPE), "data_offsets": [0, len(bits)]},
        "__metadata__": {"made_by": "hand"},
        "k": {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [len(bits), len(bits) + len(single)]},
        "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]},
        "ids": {"dtype": "I64", "shape": [5],
                "data_offsets": [len(bits) + len(single) + len(half),
                                 len(bits) + len(single) + len(half) + len(ids)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (out / "packed.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + bits + single + half + ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=pathlib.Path, default=root / "data/fixtures/formats")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for write in [write_npy, write_npz, write_hdf5, write_safetensors]:
        write(out)


if __name__ == "__main__":
    main()
