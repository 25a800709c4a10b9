#!/usr/bin/env python3
"""make_tasks.py and byte_bpe.py on the shipped tokenizer and text. Standard library alone."""

import contextlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import byte_bpe  # noqa: E402
import make_tasks  # noqa: E402

TOKENIZER = ROOT / "data/tiny-llama/tokenizer.json"
TOKENS = ROOT / "data/tokens/war_and_peace.safetensors"
LENGTHS = (1024, 2048)
SAMPLES = 3


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "scripts/make_tasks.py", "--tokenizer", TOKENIZER,
                           "--text", TOKENS, "--built-in", *map(str, arguments)],
                          capture_output=True, text=True, check=False)


class ByteBpeTest(unittest.TestCase):
    def setUp(self):
        self.tokenizer = byte_bpe.load_tokenizer(TOKENIZER, built_in=True)

    def test_shipped_tokens_are_reproduced(self):
        # The file was made by the tokenizers package.
        ids = make_tasks.read_token_file(TOKENS)
        self.assertEqual(self.tokenizer.decode(ids[:1]), "<|bos|>")
        self.assertEqual(self.tokenizer.encode(self.tokenizer.decode(ids[1:])), ids[1:])

    def test_any_text_comes_back(self):
        for text in ("", "a", "  two  blanks\n\n\tand 1234567 digits", "naïve café — “quotes”",
                     "日本語 and emoji 🙂🙃", "tabs\t\r\nand\x00control\x1f", "don't we'll I'M"):
            self.assertEqual(self.tokenizer.decode(self.tokenizer.encode(text)), text)

    def test_digits_are_single_tokens(self):
        ids = self.tokenizer.encode("8214567")
        self.assertEqual([self.tokenizer.decode([i]) for i in ids], list("8214567"))

    def test_special_tokens_only_where_they_are_asked_for(self):
        self.assertEqual(byte_bpe.encode_special(self.tokenizer, "<|bos|>a<|eos|>")[0], 0)
        self.assertNotIn(0, self.tokenizer.encode("<|bos|>"))

    def test_patterns_of_other_tokenizers(self):
        # That of Llama 3 and, with single digits, of Qwen.
        llama = byte_bpe.compile_pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        self.assertEqual(byte_bpe.isolate(llama, "It'S  12345 été!\n\n x²"),
                         ["It", "'S", " ", " ", "123", "45", " été", "!\n\n", " x", "²"])
        with self.assertRaises(byte_bpe.TokenizerError):
            byte_bpe.compile_pattern(r"\p{Han}")
        with self.assertRaises(byte_bpe.TokenizerError):
            byte_bpe.pre_tokenizer({"type": "Metaspace"})


class MakeTasksTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = pathlib.Path(cls.folder.name) / "tasks.jsonl"
        done = run("--lengths", ",".join(map(str, LENGTHS)), "--samples", SAMPLES, "--out", cls.file)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        cls.prompts = [json.loads(line) for line in cls.file.read_text().splitlines()]
        cls.tokenizer = byte_bpe.load_tokenizer(TOKENIZER, built_in=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def parts(self, prompt):
        start = prompt["answer_start"]
        end = start + prompt["answer_length"]
        ids = prompt["input_ids"]
        return self.tokenizer.decode(ids[:start]), self.tokenizer.decode(ids[start:end])

    def of_task(self, task):
        return [prompt for prompt in self.prompts if prompt["task"] == task]

    def test_every_cell_is_there_with_its_length(self):
        self.assertEqual(len(self.prompts), len(make_tasks.TASKS) * len(LENGTHS) * SAMPLES)
        for prompt in self.prompts:
            self.assertEqual(len(prompt["input_ids"]), prompt["length"])
            self.assertEqual(prompt["answer_start"] + prompt["answer_length"], prompt["length"])
            self.assertEqual(prompt["input_ids"][0], 0)
            self.assertTrue(all(0 <= i < 4096 for i in prompt["input_ids"]))

    def test_answer_tokens_are_the_answer(self):
        for prompt in self.prompts:
            self.assertEqual(self.parts(prompt)[1].strip(), prompt["meta"]["answer"])

    def test_needles_are_in_the_text_once(self):
        for task in ("niah_single", "niah_multi_key", "niah_multi_value", "niah_multi_query"):
            for prompt in self.of_task(task):
                context, _ = self.parts(prompt)
                found = dict.fromkeys(re.findall(r"numbers for (\S+) is: (\d{7})\.", context))
                keys, values = prompt["meta"]["keys"], prompt["meta"]["values"]
                if task == "niah_multi_value":
                    self.assertEqual([value for _, value in found], values)
                    continue
                for key, value in zip(keys, values):
                    self.assertIn((key, value), found)
                    self.assertEqual(context.count(value), 1)
                self.assertEqual(len(found), 1 if task == "niah_single" else make_tasks.NUM_KEYS)

    def test_chains_lead_to_every_name(self):
        for prompt in self.of_task("variable_tracking"):
            context, answer = self.parts(prompt)
            value = prompt["meta"]["value"]
            chain = re.findall(rf"VAR (\w+) = {value}\.", context)
            while True:
                following = re.findall(rf"VAR (\w+) = VAR {chain[-1]}\.", context)
                if not following:
                    break
                chain += following
            self.assertEqual(make_tasks.listed(chain), answer.strip())

    def test_asked_words_are_the_most_frequent(self):
        for task, count in (("common_words", make_tasks.NUM_COMMON), ("frequent_words", 3)):
            for prompt in self.of_task(task):
                context, answer = self.parts(prompt)
                body = context.split(".\n", 1)[1].rsplit("\nWhat", 1)[0]
                counts = {}
                for word in re.findall(r"[a-z]+", body):
                    counts[word] = counts.get(word, 0) + 1
                ranked = sorted(counts, key=lambda word: -counts[word])
                asked = re.split(r", | and ", answer.strip())
                self.assertGreater(counts[ranked[count - 1]], counts[ranked[count]])
                if task == "common_words":
                    self.assertEqual(asked, sorted(ranked[:count]))
                else:
                    self.assertEqual(asked, ranked[:count])
                    self.assertEqual(len({counts[word] for word in asked}), count)

    def test_same_arguments_same_bytes(self):
        again = self.file.with_name("again.jsonl")
        run("--lengths", 1024, "--tasks", "niah_single,common_words", "--samples", 2, "--out", again)
        wanted = [line for line in self.file.read_text().splitlines()
                  if json.loads(line)["length"] == 1024 and json.loads(line)["sample"] < 2
                  and json.loads(line)["task"] in ("niah_single", "common_words")]
        self.assertEqual(again.read_text().splitlines(), wanted)
        run("--lengths", 1024, "--tasks", "niah_single", "--samples", 1, "--seed", 5, "--out", again)
        self.assertNotEqual(again.read_text().splitlines()[0], wanted[0])

    def test_template_with_special_tokens(self):
        out = self.file.with_name("chat.jsonl")
        done = run("--lengths", 512, "--tasks", "niah_single", "--samples", 1, "--out", out,
                   "--template", r"[user]\n{prompt}<|eos|>[assistant]\n{lead}")
        self.assertEqual(done.returncode, 0, done.stderr)
        prompt = json.loads(out.read_text())
        context, _ = self.parts(prompt)
        self.assertTrue(context.startswith("<|bos|>[user]\nSome special"))
        self.assertIn("text?<|eos|>[assistant]\nThe special magic number", context)
        self.assertEqual(prompt["input_ids"].count(1), 1)

    def test_named_templates(self):
        chatml = make_tasks.find_template("chatml", None)
        self.assertEqual(chatml, "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{lead}")
        self.assertEqual(make_tasks.find_template("chatml", "Be brief."),
                         "<|im_start|>system\nBe brief.<|im_end|>\n" + chatml)
        for name in make_tasks.TEMPLATES:
            for system in (None, "Be brief."):
                template = make_tasks.find_template(name, system)
                self.assertTrue(template.endswith("{lead}") and template.count("{prompt}") == 1)

    def test_errors_say_what_and_leave_nothing(self):
        out = self.file.with_name("none.jsonl")
        for arguments, text in (
                (("--lengths", 64), "--lengths 64: too short for niah_single"),
                (("--lengths", 1024, "--tasks", "niah"), "--tasks niah: expected some of"),
                (("--lengths", 1024, "--template", "{prompt}"), "expected one of plain, chatml, llama3"),
                (("--lengths", 1024, "--template", "{prompt}{lead}", "--system", "Be brief."), "--system"),
                (("--lengths", 1024, "--template", "{lead}{prompt}"), "{lead} after it"),
                (("--lengths", 1024, "--template", "llama3"),
                 "<|start_header_id|> is no special token of this tokenizer, which has <|bos|>"),
                (("--lengths", 1024, "--bos", 4096), "--bos 4096: expected none, auto"),
                (("--lengths", "1024,many"), "--lengths: found 'many'"),
                (("--lengths", ""), "--lengths: found ''"),
                (("--lengths", 1024, "--samples", 0), "--samples: found '0'")):
            done = run(*arguments, "--out", out)
            self.assertIn(done.returncode, (1, 2))
            self.assertIn(text, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
            self.assertEqual(list(out.parent.glob("none.*")), [])


class BrokenInputTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = pathlib.Path(folder.name) / "input"

    def test_tokenizers_say_which_file_and_what_it_lacks(self):
        vocab = '"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE", "merges": [], "vocab": '
        for text, message in (("", "no JSON"), ("[]", "lacks a part"), ("{}", "'model'"),
                              ('{"model": {"type": "BPE"}}', "'vocab'"),
                              ('{"model": {"type": "WordPiece"}}', "byte-level BPE"),
                              (f"{{{vocab} {{}}}}}}", "empty vocabulary"),
                              (f'{{{vocab} {{"a": "x"}}}}}}', "model.vocab: found 'a' with id 'x'"),
                              (f'{{{vocab} {{"a": 0}}}}, "added_tokens": [{{"content": 3, "id": 1}}]}}',
                               "added_tokens: found 3 with id 1")):
            self.file.write_text(text)
            for built_in in (True, False):
                with self.subTest(text=text), self.assertRaises(byte_bpe.TokenizerError) as caught:
                    byte_bpe.load_tokenizer(self.file, built_in)
                self.assertIn(str(self.file), str(caught.exception))
                self.assertIn(message, str(caught.exception))

    def test_bytes_without_a_token_are_left_out_and_tokens_without_bytes_are_named(self):
        self.file.write_text('{"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE", '
                             '"merges": [], "vocab": {"a": 0, "\u4e2d": 1}}}')
        tokenizer = byte_bpe.load_tokenizer(self.file, built_in=True)
        with contextlib.redirect_stderr(io.StringIO()) as warnings:
            self.assertEqual(tokenizer.encode("aba"), [0, 0])
            self.assertEqual(tokenizer.encode("b"), [])
        self.assertEqual(warnings.getvalue().count("no token for 'b'"), 1)
        with self.assertRaisesRegex(byte_bpe.TokenizerError, "token 1,"):
            tokenizer.decode([0, 1])

    def test_token_files_that_are_cut_off_are_refused(self):
        whole = TOKENS.read_bytes()
        for size in (0, 7, 60, 5000, len(whole) - 4):
            self.file.write_bytes(whole[:size])
            with self.subTest(size=size), self.assertRaisesRegex(make_tasks.TaskError, str(self.file)):
                make_tasks.read_token_file(self.file)

    def test_files_that_cannot_be_written_or_are_of_another_tokenizer_are_named(self):
        full = self.file.with_name("full.jsonl")
        self.file.with_name("full.jsonl.partial").symlink_to("/dev/full")
        for arguments, text in ((("--out", full), f"{full}: No space left"),
                                (("--out", "/proc/tasks.jsonl"), "/proc/tasks.jsonl.partial: No such file"),
                                (("--out", full, "--text", ROOT / "data/tokens/smollm2_book.safetensors"),
                                 "smollm2_book.safetensors: token id")):
            done = run("--lengths", 1024, *arguments)
            self.assertEqual(done.returncode, 1)
            self.assertIn(text, done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_text_that_is_not_utf8_is_refused(self):
        self.file.write_bytes(b"caf\xe9")
        with self.assertRaisesRegex(make_tasks.TaskError, "byte 3 is not UTF-8"):
            make_tasks.read_plain_text(self.file)


if __name__ == "__main__":
    unittest.main()
