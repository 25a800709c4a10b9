#!/usr/bin/env bash
# Builds s2o and runs it on the attention of SmolLM2 (data/smollm2): a table on stdout,
# result files and a picture in results/quickstart/. Safe to run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$S2O_ROOT"

s2o_build_program
"$S2O" eval --config configs/quickstart.json --out results/quickstart
/usr/bin/python3 scripts/plot.py frontier results/quickstart --out results/quickstart/frontier
echo
echo "program: ${S2O#"$S2O_ROOT"/}"
echo "tables:  results/quickstart/results.json, results/quickstart/results.h5"
echo "picture: results/quickstart/frontier.png"
