#!/usr/bin/env python3
"""Holds the results of two runs of the same config together, row by row.

  python3 scripts/compare_results.py results/on_cpu results/on_cuda

Exit code 1 when a row is missing, has an error in one of them, or differs by more than rounding;
with --exact, when anything but times and who computed the row differs.
"""

import argparse
import json
import pathlib
import sys

# Attention in 16 bits rounds P to 8 bits of mantissa; early stops may differ at near-ties.
TOLERANCES = {  # column: (absolute, relative)
    "held_out_loss": (5e-3, 0.0),
    "relative_l2": (4e-3, 0.02),
    "mass_recall": (1e-3, 0.0),
    "compute_density": (0.0, 0.01),
    "pair_density": (0.0, 0.01),
}
# What a row of `s2o eval` or of `s2o prefill` is about, beside method and parameters.
CELL = ("model", "qkv", "prompt", "input", "layer", "seqlen")


def read_rows(path):
    file = pathlib.Path(path)
    file = file / "results.json" if file.is_dir() else file
    if not file.is_file():
        sys.exit(f"{file}: no such result file")
    try:
        rows = json.loads(file.read_text())["rows"]
        return {tuple(str(row[column]) for column in CELL if column in row)
                + (row["method"], json.dumps(row["params"], sort_keys=True)): row for row in rows}
    except (LookupError, TypeError, ValueError) as error:
        sys.exit(f"{file}: no results of s2o: {error!r}")


def is_time_or_rank(column):
    return column.endswith("_ms") or column in ("speedup_vs_dense", "effective_tflops", "rank")


def complaints(first, second, exact):
    if first is None or second is None:
        return ["row is missing in " + ("the first" if first is None else "the second")]
    found = [f"error: {row['error']}" for row in (first, second) if row["error"]]
    if exact:
        return found + [f"{column} is {first.get(column)} and {second.get(column)}"
                        for column in sorted(first.keys() | second.keys())
                        if not is_time_or_rank(column) and first.get(column) != second.get(column)]
    for column, (absolute, relative) in TOLERANCES.items():
        a, b = first.get(column), second.get(column)
        if (a is None) != (b is None):
            found.append(f"{column} is {a} and {b}")
        elif a is not None and abs(a - b) > absolute + relative * max(abs(a), abs(b)):
            found.append(f"{column} is {a:.6g} and {b:.6g}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--exact", action="store_true", help="rows are equal but for times")
    arguments = parser.parse_args()
    first, second = read_rows(arguments.first), read_rows(arguments.second)
    failed = 0
    for key in sorted(first.keys() | second.keys()):
        found = complaints(first.get(key), second.get(key), arguments.exact)
        failed += bool(found)
        error = "relative_l2" if "relative_l2" in (first.get(key) or second[key]) else "held_out_loss"
        values = [f"{(row or {}).get(column) or 0:.5f}" for column in (error, "compute_density")
                  for row in (first.get(key), second.get(key))]
        print(f"{'DIFFERS' if found else 'ok':8}{key[-2]:14}{key[-1]:40} {error} {values[0]} {values[1]}  "
              f"compute_density {values[2]} {values[3]}")
        for text in found:
            print(f"        {text}")
    print(f"{len(first.keys() | second.keys())} rows, {failed} differ")
    return 1 if failed or not first else 0


if __name__ == "__main__":
    sys.exit(main())
