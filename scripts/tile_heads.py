#!/usr/bin/env python3
"""Gives the layers of a capture the heads of another model, by repeating theirs.

KV heads are repeated in order until there are enough; of the query heads of each, a copy takes as
many as the new group has, beginning where the copy before it ended. Attention then has the shape of
the other model and the data of this one. Only safetensors, which needs no package; tensors are
copied in pieces.

  python3 scripts/tile_heads.py qwen.safetensors tiled.safetensors --num-q-heads 32 --num-kv-heads 8
"""

import argparse
import json
import os
import re
import struct
import sys

PIECE = 1 << 24  # bytes
NAME = re.compile(r"layer\.(\d+)\.([qkv])")


def read_header(file):
    """Tensors by name, and where their bytes begin."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        sys.exit(f"{file.name}: no safetensors file, {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > size - 8:
        sys.exit(f"{file.name}: no safetensors file, its header is said to have {length} of {size} bytes")
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        sys.exit(f"{file.name}: no safetensors file ({error})")
    if not isinstance(header, dict):
        sys.exit(f"{file.name}: no safetensors file, its header is no object")
    return header, 8 + length


def layers_of(header, name):
    layers = {}
    for tensor, entry in header.items():
        match = NAME.fullmatch(tensor)
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = entry
    layers = {layer: tensors for layer, tensors in layers.items() if len(tensors) == 3}
    if not layers:
        sys.exit(f"{name}: no layer with q, k and v")
    return layers


def heads_to_copy(q_heads, kv_heads, new_q_heads, new_kv_heads):
    """Query heads and KV heads of the old layer that the heads of the new one are."""
    group = q_heads // kv_heads
    new_group = new_q_heads // new_kv_heads
    kv = [head % kv_heads for head in range(new_kv_heads)]
    q = []
    for head in range(new_kv_heads):
        first = head // kv_heads * new_group
        q += [kv[head] * group + (first + i) % group for i in range(new_group)]
    return q, kv


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture")
    parser.add_argument("out")
    parser.add_argument("--num-q-heads", type=int, required=True)
    parser.add_argument("--num-kv-heads", type=int, required=True)
    parser.add_argument("--layers", type=numbers, help="with commas [all]")
    arguments = parser.parse_args()
    if min(arguments.num_q_heads, arguments.num_kv_heads) < 1 or arguments.num_q_heads % arguments.num_kv_heads:
        parser.error("--num-q-heads: a multiple of --num-kv-heads, which is at least 1")
    try:
        tile(arguments)
    except OSError as error:
        sys.exit(f"{error.filename or arguments.out}: {error.strerror}")
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        sys.exit(f"{arguments.capture}: its header is not that of a capture: {error!r}")
    finally:
        if os.path.exists(arguments.out + ".new"):
            os.remove(arguments.out + ".new")


def tile(arguments):
    with open(arguments.capture, "rb") as source:
        header, data = read_header(source)
        layers = layers_of(header, arguments.capture)
        if arguments.layers:
            wanted = arguments.layers
            missing = [layer for layer in wanted if layer not in layers]
            if missing:
                sys.exit(f"{arguments.capture}: no layer {missing[0]}; there are {sorted(layers)}")
            layers = {layer: layers[layer] for layer in wanted}
        tiled = {"__metadata__": {**header.get("__metadata__", {}), "heads": "repeated by tile_heads.py"}}
        copies = []
        end = 0
        for layer, tensors in sorted(layers.items()):
            q, kv = heads_to_copy(tensors["q"]["shape"][0], tensors["k"]["shape"][0], arguments.num_q_heads,
                                  arguments.num_kv_heads)
            for name, heads in (("q", q), ("k", kv), ("v", kv)):
                entry = tensors[name]
                begin, stop = entry["data_offsets"]
                size = (stop - begin) // entry["shape"][0]
                copies += [(data + begin + head * size, size) for head in heads]
                tiled[f"layer.{layer}.{name}"] = {"dtype": entry["dtype"], "shape": [len(heads), *entry["shape"][1:]],
                                                  "data_offsets": [end, end + len(heads) * size]}
                end += len(heads) * size
        text = json.dumps(tiled).encode()
        text += b" " * (-len(text) % 8)
        unfinished = arguments.out + ".new"
        with open(unfinished, "wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            for begin, size in copies:
                source.seek(begin)
                left = size
                while left > 0:
                    piece = source.read(min(left, PIECE))
                    if not piece:
                        sys.exit(f"{arguments.capture}: ends {left} bytes before its tensors do")
                    target.write(piece)
                    left -= len(piece)
        os.replace(unfinished, arguments.out)


if __name__ == "__main__":
    main()
