"""Inputs of all tests: a head of a real model, and where to find the program."""

import json
import pathlib

import numpy
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


def pytest_addoption(parser):
    parser.addoption("--s2o", default=None, help="the program s2o, whose outputs the module's must equal")


def read_safetensors(path):
    """{name: (dtype, array)}; BF16 as uint16."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    types = {"BF16": numpy.uint16, "F16": numpy.float16, "F32": numpy.float32}
    return {name: (entry["dtype"],
                   numpy.frombuffer(data[8 + size:][slice(*entry["data_offsets"])],
                                    types[entry["dtype"]]).reshape(entry["shape"]))
            for name, entry in header.items() if name != "__metadata__"}


def widen(bits):
    """fp32 of bf16 bits."""
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


@pytest.fixture(scope="session")
def qkv():
    """fp32 arrays [3, 1024, 64] and twice [1, 1024, 64], exact in bf16: a layer of SmolLM2-135M."""
    tensors = read_safetensors(ROOT / "data/smollm2/qkv.safetensors")
    return tuple(numpy.ascontiguousarray(widen(tensors[f"layer.20.{name}"][1][:, :1024]))
                 for name in "qkv")


@pytest.fixture(scope="session")
def program(pytestconfig):
    path = pytestconfig.getoption("--s2o")
    if path is None:
        pytest.skip("needs --s2o")
    return path
