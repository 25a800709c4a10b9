#!/usr/bin/env python3
"""compare_results.py on rows of evaluations and of prefills, and on files that are no results."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = {"seqlen": 1024, "method": "s2o", "params": {"tau": 0.1}, "compute_density": 0.5, "error": None}
OF_EVAL = {**SHARED, "input": "book", "layer": 3, "relative_l2": 0.1, "mass_recall": 0.9, "pair_density": 0.5}
OF_PREFILL = {**SHARED, "model": "small", "qkv": "model", "prompt": "book", "held_out_loss": 3.0, "linear_ms": 1.0}


class CompareResultsTest(unittest.TestCase):
    def compare(self, first, second, *options):
        with tempfile.TemporaryDirectory() as folder:
            paths = [pathlib.Path(folder, name) for name in ("first.json", "second.json")]
            for path, rows in zip(paths, (first, second)):
                path.write_text(rows if isinstance(rows, str) else json.dumps({"rows": rows}))
            done = subprocess.run([sys.executable, ROOT / "scripts/compare_results.py", *paths, *options],
                                  capture_output=True, text=True, check=False)
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stdout + done.stderr

    def test_rows_of_evaluations_and_of_prefills(self):
        for row, other in ((OF_EVAL, {"relative_l2": 0.2}), (OF_PREFILL, {"held_out_loss": 3.1})):
            self.assertEqual(self.compare([row], [{**row, "plan_ms": 2.0}], "--exact")[0], 0)
            for options in ((), ("--exact",)):
                code, text = self.compare([row], [{**row, **other}], *options)
                self.assertEqual(code, 1)
                self.assertIn(f"{next(iter(other))} is", text)
            self.assertIn("missing in the second", self.compare([row], [{**row, "seqlen": 2048}])[1])

    def test_what_is_no_result_is_named(self):
        for text in ("", "{}", "[]", '{"rows": [{}]}'):
            code, message = self.compare([OF_EVAL], text)
            self.assertEqual(code, 1)
            self.assertIn("second.json: no results", message)


if __name__ == "__main__":
    unittest.main()
