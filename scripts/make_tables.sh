#!/usr/bin/env bash
# Regenerates the paper's tables and figures for a model and a token file:
#   scripts/make_tables.sh [MODEL [TOKENS [SEQLEN [OUT]]]]
# Defaults: the shipped model, War and Peace, 8192 tokens, results/tables_SEQLEN. Runs that are
# complete are not repeated, an interrupted one goes on where it ended.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$S2O_ROOT"

model=$(realpath "${1:-data/tiny-llama}")
tokens=$(realpath "${2:-data/tokens/war_and_peace.safetensors}")
seqlen=${3:-8192}
out=${4:-results/tables_$seqlen}
s2o=${S2O_BINARY:-build/cpu/s2o}
if [ ! -x "$s2o" ]; then
  s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}"
  cmake --preset cpu -DS2O_TESTS=OFF -DS2O_BENCHMARKS=OFF >/dev/null
  cmake --build build/cpu --target s2o
fi
mkdir -p "$out"

run() {  # run CONFIG: evaluates configs/tables/CONFIG.json into OUT/CONFIG
  "$s2o" eval --config "configs/tables/$1.json" --set "inputs.0.model=$model" \
    --set "inputs.0.tokens=$tokens" --set "inputs.0.seqlen=$seqlen" --out "$out/$1" --resume \
    --format csv >"$out/$1.csv" || [ $? -eq 1 ]  # 1: some cells failed, their rows say why
}
table() {  # table CONFIG NAME [OPTIONS]: text, markdown and JSON of one table
  local config=$1 name=$2 format
  shift 2
  for format in text markdown json latex; do
    "$s2o" table "$out/$config" --table "$name" --format "$format" "$@" \
      >"$out/$config.$name.${format/markdown/md}"
  done
}
plot() { /usr/bin/python3 scripts/plot.py "$@"; }

for config in frontier ablations ablations_plus compensation; do run "$config"; done

for name in frontier matched_sparsity matched_mse per_head latency; do table frontier "$name"; done
table ablations ablations
table ablations_plus ablations --reference s2o_plus
table compensation compensation

plot frontier "$out/frontier" --out "$out/frontier"
plot density_by_head "$out/frontier" --out "$out/density_by_head"
plot stop_depth "$out/frontier" --out "$out/stop_depth"
plot latency "$out/frontier" --out "$out/latency"
plot matched_sparsity "$out/frontier.matched_sparsity.json" --out "$out/matched_sparsity"
plot matched_mse "$out/frontier.matched_mse.json" --out "$out/matched_mse"
plot ablations "$out/ablations.ablations.json" --out "$out/ablations"
plot ablations "$out/ablations_plus.ablations.json" --out "$out/ablations_plus"
plot compensation "$out/compensation.compensation.json" --out "$out/compensation"
echo "tables and figures: $out" >&2
