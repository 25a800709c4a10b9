#!/usr/bin/env bash
# Builds s2o and runs it on the attention of the shipped language model: a table on stdout,
# result files and a picture in results/quickstart/. Safe to run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$S2O_ROOT"

s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}"
preset=cpu
if s2o_find_nvcc && s2o_has_gpu; then preset=cuda; fi
echo "building s2o ($preset)" >&2
cmake --preset "$preset" -DS2O_TESTS=OFF -DS2O_BENCHMARKS=OFF -B "build/quickstart-$preset" >/dev/null
cmake --build "build/quickstart-$preset" --target s2o

"build/quickstart-$preset/s2o" eval --config configs/quickstart.json --out results/quickstart
/usr/bin/python3 scripts/plot.py frontier results/quickstart --out results/quickstart/frontier
echo
echo "tables:  results/quickstart/results.json, results/quickstart/results.h5"
echo "picture: results/quickstart/frontier.png"
