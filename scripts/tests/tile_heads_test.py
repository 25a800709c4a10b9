"""Heads of a capture, repeated."""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import tile_heads  # noqa: E402

CAPTURE = ROOT / "data/smollm2/qkv.safetensors"


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "scripts/tile_heads.py", *map(str, arguments)], capture_output=True,
                          text=True, check=False)


def heads_of(path, tensor):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[tensor]
        begin, end = entry["data_offsets"]
        file.seek(8 + length + begin)
        data = file.read(end - begin)
    size = len(data) // entry["shape"][0]
    return entry["shape"], [data[i:i + size] for i in range(0, len(data), size)]


class TileHeadsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.out = pathlib.Path(self.folder.name) / "tiled.safetensors"

    def tearDown(self):
        self.folder.cleanup()

    def test_every_query_head_keeps_its_kv_head(self):
        q, kv = tile_heads.heads_to_copy(12, 2, 32, 8)
        self.assertEqual(kv, [0, 1] * 4)
        self.assertEqual(q[:8], [0, 1, 2, 3, 6, 7, 8, 9])
        self.assertEqual(q[8:12], [4, 5, 0, 1])
        for head, copied in enumerate(q):
            self.assertEqual(copied // 6, kv[head // 4])

    def test_bytes_of_heads_are_those_of_the_capture(self):
        done = run(CAPTURE, self.out, "--num-q-heads", 8, "--num-kv-heads", 4, "--layers", "11,25")
        self.assertEqual(done.returncode, 0, done.stderr)
        for layer in (11, 25):
            shape, tiled = heads_of(self.out, f"layer.{layer}.q")
            self.assertEqual(shape, [8, 6144, 64])
            _, heads = heads_of(CAPTURE, f"layer.{layer}.q")
            self.assertEqual(tiled, [heads[i % 3] for i in range(8)])
            shape, tiled = heads_of(self.out, f"layer.{layer}.v")
            self.assertEqual(shape, [4, 6144, 64])
            self.assertEqual(tiled, 4 * heads_of(CAPTURE, f"layer.{layer}.v")[1])

    def test_what_is_no_capture_is_named(self):
        broken = pathlib.Path(self.folder.name) / "broken.safetensors"
        broken.write_bytes(CAPTURE.read_bytes()[:100000])
        hollow = broken.with_name("hollow.safetensors")
        header = b'{"layer.0.q":{},"layer.0.k":{},"layer.0.v":{}}'
        hollow.write_bytes(len(header).to_bytes(8, "little") + header)
        for path, words in ((broken, "bytes before its tensors do"), (__file__, "no safetensors file"),
                            (hollow, "not that of a capture"),
                            (broken.with_name("none.safetensors"), "No such file")):
            done = run(path, self.out, "--num-q-heads", 8, "--num-kv-heads", 4)
            self.assertEqual(done.returncode, 1)
            self.assertIn(words, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
            self.assertFalse(self.out.exists())
        done = run(CAPTURE, self.out, "--num-q-heads", 8, "--num-kv-heads", 4, "--layers", "7")
        self.assertIn("no layer 7; there are [11, 20, 25]", done.stderr)


if __name__ == "__main__":
    unittest.main()
