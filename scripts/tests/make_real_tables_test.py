#!/usr/bin/env python3
"""make_real_tables.sh with a program in place of s2o that computes nothing: what it refuses, keeps and
goes on with."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Records its arguments; a run waits, a table fails, where the test says so.
PROGRAM = """#!/usr/bin/env python3
import os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
with open(folder / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
command = sys.argv[1]
if command in ("table", "match"):
    if (folder / "no_tables").exists():
        print("half a ta", flush=True)
        sys.exit(2)
    print("a table")
    sys.exit(0)
if (folder / "slow").exists():
    time.sleep(60)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if command == "capture":
    out.write_text("captured")
else:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text("{}")
"""


class MakeRealTablesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.build, self.out = self.folder / "build", self.folder / "out"
        self.build.mkdir()
        (self.build / "s2o").write_text(PROGRAM)
        (self.build / "s2o").chmod(0o755)
        self.model = self.make_model("small", 32)
        (self.out / "text").mkdir(parents=True)
        for kind in ("book", "code"):  # not what is tested here
            (self.out / f"text/small-{kind}-8192.safetensors").write_text("tokens")

    def make_model(self, name, size):
        folder = self.folder / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"hidden_size": size}))
        for file in ("tokenizer.json", "model.safetensors"):
            (folder / file).write_text("{}")
        return folder

    def run_script(self, *arguments, model=None):
        return subprocess.run(["bash", ROOT / "scripts/make_real_tables.sh", "--build", self.build, "--device",
                               "cpu", "--smollm2", model or self.model, *map(str, arguments)], cwd=self.folder,
                              capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})

    def calls(self):
        path = self.build / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def test_options_are_checked_before_anything_runs(self):
        for arguments, text in ((("--foo",), "--foo: no such option"), (("--parts",), "--parts: a value is missing"),
                                (("--parts", "tables,tabels"), "--parts: found 'tabels', expected some of attention"),
                                (("--texts", "boook"), "--texts: found 'boook', expected some of book,code"),
                                (("--device", "gpu"), "--device: found 'gpu'"),
                                (("--samples", "0"), "--samples: found '0'"), (("--budget", "x"), "--budget: found 'x'"),
                                (("--qwen", "nowhere"), "--qwen nowhere: no config.json there"),
                                (("--qwen", self.model), "two folders of one name"),
                                (("--build", self.folder), "no program s2o there"),
                                (("a", "b"), "b: a second OUT beside a")):
            with self.subTest(arguments=arguments):
                done = self.run_script(*arguments)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn(text, done.stderr)
        self.assertEqual(self.calls(), [])

    def test_lists_may_have_blanks_and_models_need_weights(self):
        done = self.run_script("--parts", "attention, loss", "--texts", "book, code", "out")
        self.assertEqual(done.returncode, 0, done.stderr)
        commands = [call.split()[0] for call in self.calls()]
        self.assertEqual((commands.count("capture"), commands.count("prefill")), (2, 2))
        (self.model / "model.safetensors").rename(self.model / "pytorch_model.bin")
        done = self.run_script("out")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("no model*.safetensors there", done.stderr)

    def test_captures_are_kept_and_belong_to_their_model(self):
        arguments = ("--parts", "attention", "out")
        for _ in range(2):
            done = self.run_script(*arguments)
            self.assertEqual(done.returncode, 0, done.stderr)
        commands = [call.split()[0] for call in self.calls()]
        self.assertEqual((commands.count("capture"), commands.count("eval")), (2, 4))
        done = self.run_script(*arguments, model=self.make_model("other", 64))
        self.assertEqual(done.returncode, 2)
        self.assertIn("not the model that", done.stderr)

    def test_runs_that_the_budget_cuts_off_do_not_keep_back_others(self):
        (self.build / "slow").touch()
        done = self.run_script("--parts", "attention,loss", "--texts", "book", "--budget", 1, "out")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("capture of smollm2-book-8192: cut off by --budget", done.stderr)
        self.assertIn("loss-smollm2-book-8192: cut off by --budget", done.stderr)
        (self.build / "slow").unlink()
        done = self.run_script("--parts", "attention,loss", "--texts", "book", "--budget", 30, "out")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_table_that_fails_leaves_the_one_before(self):
        done = self.run_script("--parts", "tables", "out")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no results in", done.stderr)
        self.run_script("--parts", "attention,tables", "--texts", "book", "out")
        table = self.out / "tables/frontier-smollm2-book-8192.txt"
        self.assertEqual(table.read_text(), "a table\n")
        (self.build / "no_tables").touch()
        done = self.run_script("--parts", "tables", "--texts", "book", "out")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"no table {table.with_suffix('')}", done.stderr)
        self.assertEqual(table.read_text(), "a table\n")
        self.assertEqual([path for path in self.out.rglob("*") if path.suffix == ".new"], [])

    def test_prompts_of_another_number_are_refused(self):
        (self.out / "text/small-book-131072.safetensors").write_text("tokens")
        (self.out / "text/smollm2-tasks.jsonl").write_text("{}\n" * 8)
        done = self.run_script("--parts", "retrieval", "--samples", 2, "out")
        self.assertEqual(done.returncode, 0, done.stderr)
        done = self.run_script("--parts", "retrieval", "out")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--samples 50:", done.stderr)


if __name__ == "__main__":
    unittest.main()
