#!/usr/bin/env python3
"""What plot.py reads, whole and broken; and figures of few rows, where matplotlib is installed."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import plot_data  # noqa: E402

PLOT = "/usr/bin/python3"  # that of the packages which the scripts install


def eval_row(method, density, **params):
    return {"input": "book", "layer": 1, "seqlen": 1024, "method": method, "params": params,
            "backend": "cpu", "compute_density": density, "mse": 0.1 * (1 - density),
            "plan_latency_ms": 1.0, "attention_latency_ms": 2.0, "total_latency_ms": 3.0,
            "error": None}


def prefill_row(method, loss, **params):
    return {"prompt": "book", "model": "tiny", "seqlen": 1024, "method": method, "params": params,
            "compute_density": 0.5, "held_out_loss": loss, "dense_loss": 3.0, "kl_from_dense": 0.01,
            "loss_by_position": [{"begin": 0, "end": 1023, "loss": loss}], "error": None}


def table_row(method, speedup):
    return {"input": "book", "seqlen": 1024, "on": "relative_l2", "target": 0.1, "method": method,
            "speedup_vs_dense": speedup, "units": 1, "total_units": 1}


class PlotTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, document, name="results.json"):
        path = self.folder / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    def expect_error(self, text, function, *arguments):
        with self.assertRaises(plot_data.PlotError) as caught:
            function(*arguments)
        self.assertIn(text, str(caught.exception))

    def test_rows_of_evaluations_and_of_prefills_are_kept_apart(self):
        paths = [self.write({"rows": [eval_row("s2o", 0.5), prefill_row("s2o", 3.1)]})]
        self.assertEqual(len(plot_data.read_rows(paths)), 2)
        self.assertEqual([row["compute_density"] for row in plot_data.read_rows(paths, "eval")], [0.5])
        self.assertEqual(len(plot_data.read_rows(paths, "prefill")), 1)
        paths = [self.write({"rows": [eval_row("s2o", 0.5)]})]
        self.expect_error("no rows of s2o prefill (1 of others)", plot_data.read_rows, paths, "prefill")

    def test_broken_results_are_named(self):
        for document, text in (("", "no JSON"), ("[1]", "no 'rows'"), ({"rows": 3}, "expected a list"),
                               ({"rows": [3]}, "rows[0]: 'method'"), ({"rows": []}, "none was computed"),
                               ({"rows": [{"method": "s2o"}]}, "rows[0]: 'params': found null"),
                               ({"rows": [dict(eval_row("s2o", 0.5), seqlen="x")]}, "'seqlen'"),
                               ({"rows": [dict(eval_row("s2o", 0.5), error="x")]}, "all failed")):
            with self.subTest(document=document):
                self.expect_error(text, plot_data.read_rows, [self.write(document)])

    def test_broken_tables_are_named(self):
        table = {"name": "t", "title": "T", "notes": [], "rows": [{"a": 1}, {"b": 2}]}
        for document, text in (({"tables": 3}, "no 'tables'"), ({"tables": []}, "it holds none"),
                               ({"tables": [dict(table, name="u")]}, "it holds u"),
                               ({"tables": [{"name": "t"}]}, "rows is missing"),
                               ({"tables": [dict(table, rows=[])]}, "has no rows"),
                               ({"tables": [table]}, "rows[1]['a'] is missing")):
            with self.subTest(document=document):
                self.expect_error(text, plot_data.read_tables, [self.write(document)], "t", ("a",))

    def test_knobs_that_the_results_do_not_have_are_named(self):
        rows = [eval_row("s2o", 0.5, tau=0.1), eval_row("s2o", 0.7, tau=0.2)]
        self.assertEqual(plot_data.find_knobs(rows, {}), {"s2o": "tau"})
        self.expect_error("--knob s2o=foo: the results of s2o have tau", plot_data.find_knobs, rows,
                          {"s2o": "foo"})
        self.expect_error("--knob foo=tau", plot_data.find_knobs, rows, {"foo": "tau"})

    def test_settings_that_lack_layers_are_named(self):
        rows = [eval_row("s2o", 0.5, tau=0.1), eval_row("s2o", 0.7, tau=0.2), eval_row("dense", 1.0)]
        self.assertEqual(plot_data.gaps_text(plot_data.group_settings(rows, {})), "")
        rows += [dict(row, layer=2) for row in rows[:2]]
        text = plot_data.gaps_text(plot_data.group_settings(rows, {}))
        self.assertIn("dense at 1,024 tokens (1 of 2)", text)
        self.assertNotIn("s2o", text)

    def plot(self, *arguments):
        done = subprocess.run([PLOT, "-W", "error::UserWarning", ROOT / "scripts/plot.py", *arguments],
                              capture_output=True, text=True, check=False)
        self.assertNotIn("Traceback", done.stderr)
        return done

    def test_figures_of_few_rows(self):
        if not pathlib.Path(PLOT).exists() or subprocess.run(
                [PLOT, "-c", "import matplotlib"], capture_output=True, check=False).returncode:
            self.skipTest("matplotlib is not installed")
        one = self.write({"rows": [eval_row("s2o", 0.5)]})
        dense = self.write({"rows": [prefill_row("dense", 3.0)]}, "dense.json")
        sparse = self.write({"rows": [prefill_row("s2o", 3.1)]}, "sparse.json")
        table = self.write({"tables": [{"name": "matched_error", "title": "T", "notes": [],
                                        "rows": [table_row("s2o", 2.0)]}]}, "table.json")
        out = str(self.folder / "figure")
        for arguments in (("frontier", one), ("latency", one), ("divergence", sparse), ("loss", sparse),
                          ("loss_by_position", dense, sparse), ("matched_error", table)):
            with self.subTest(arguments=arguments):
                done = self.plot(*arguments, "--out", out)
                self.assertEqual(done.returncode, 0, done.stderr)
                for suffix in (".pdf", ".png"):
                    pathlib.Path(out + suffix).unlink()
        other = self.write({"tables": [{"name": "matched_error", "title": "T", "notes": [],
                                        "rows": [dict(table_row("s2o", 2.0), on="mse")]}]}, "other.json")
        model = self.write({"rows": [dict(prefill_row("s2o", 3.1), model="other")]}, "model.json")
        for arguments, text in ((("matched_error", table, other), "mse and relative_l2"),
                                (("loss", sparse, model), "results of other and tiny, expected one"),
                                (("frontier", str(self.folder / "a.h5")), "expected the results.json"),
                                (("loss", dense), "no held-out loss of a sparse method"),
                                (("loss_by_position", sparse), "no rows of dense"),
                                (("frontier", sparse), "no rows of s2o eval"),
                                (("frontier", one, "--out", str(self.folder)), "a folder")):
            with self.subTest(arguments=arguments):
                done = self.plot("--out", out, *arguments)
                self.assertEqual(done.returncode, 2)
                self.assertIn(text, done.stderr)
        self.assertEqual(list(self.folder.glob("figure*")), [])


if __name__ == "__main__":
    unittest.main()
