"""Token files of the shipped books, of code and of plain text."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import byte_bpe  # noqa: E402
import make_tasks  # noqa: E402

TOKENIZER = ROOT / "data/tiny-llama/tokenizer.json"


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "scripts/make_tokens.py", "--tokenizer", TOKENIZER,
                           *map(str, arguments)], capture_output=True, text=True, check=False)


class MakeTokensTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.out = pathlib.Path(self.folder.name) / "tokens.safetensors"
        self.tokenizer = byte_bpe.load_tokenizer(TOKENIZER)

    def tearDown(self):
        self.folder.cleanup()

    def ids(self, *arguments):
        done = run(*arguments, "--out", self.out)
        self.assertEqual(done.returncode, 0, done.stderr)
        return make_tasks.read_token_file(self.out)

    def test_the_book_in_its_own_tokens_is_the_shipped_file(self):
        ids = self.ids("--book", "--tokens", 5000)
        shipped = make_tasks.read_token_file(ROOT / "data/tokens/war_and_peace.safetensors")
        self.assertEqual(ids, shipped[1:5001])  # which starts with <|bos|>

    def test_code_is_the_sources_in_the_order_of_their_names(self):
        sources = pathlib.Path(self.folder.name) / "sources"
        (sources / "b").mkdir(parents=True)
        (sources / "b" / "x.py").write_text("y = 1\n")
        (sources / "a.cpp").write_text("int x;\n")
        (sources / "notes.txt").write_text("no code\n")
        text = self.tokenizer.decode(self.ids("--code", sources))
        self.assertEqual(text, "# a.cpp\nint x;\n\n\n# b/x.py\ny = 1\n")

    def test_the_standard_library_is_enough(self):
        self.assertEqual(len(self.ids("--code", "--tokens", 3000)), 3000)

    def test_errors_say_what_and_leave_nothing(self):
        text = pathlib.Path(self.folder.name) / "a.txt"
        text.write_text("a few words")
        for arguments, message in ((("--text", text, "--tokens", 100), "expected at least 100"),
                                   (("--code", text), "no such folder"),
                                   (("--text", text, "--tokens", -5), "--tokens: found '-5'"),
                                   (("--text", ROOT / "data/tokens/war_and_peace.safetensors"), "is not UTF-8"),
                                   (("--text", text.with_name("none.txt")), "none.txt")):
            done = run(*arguments, "--out", self.out)
            self.assertIn(done.returncode, (1, 2))
            self.assertIn(message, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
            self.assertFalse(self.out.exists())
        self.assertIn("expected a .safetensors file",
                      run("--text", text, "--out", text.with_name("b.txt")).stderr)


if __name__ == "__main__":
    unittest.main()
