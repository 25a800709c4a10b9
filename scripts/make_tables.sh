#!/usr/bin/env bash
# Regenerates the paper's tables and figures for a model and its tokens. Safe to interrupt and to
# run again: what was computed is kept.
#
#   scripts/make_tables.sh MODEL TOKENS SEQLEN [OUT] [-- EVAL_OPTION...]
#   scripts/make_tables.sh data/tiny-llama \
#     data/tokens/war_and_peace.safetensors,data/tokens/middlemarch.safetensors 8192
#
# MODEL is a Hugging Face folder; TOKENS a token file, or several with commas (each is one more
# input). Structured synthetic inputs of the same length get tables of their own (*_synthetic).
# OUT: default results/tables. EVAL_OPTIONs go to every `s2o eval`, for instance
# --set inputs.0.layers=0,8,16 --device cuda. Tables: OUT/tables/*.{txt,md,csv,tex,json}; figures:
# OUT/figures/*.{pdf,png}.
set -euo pipefail
invoked_from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"

if [ $# -lt 3 ]; then
  sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
fi
model=$(realpath "$1")
IFS=, read -r -a token_files <<<"$2"
for i in "${!token_files[@]}"; do token_files[i]=$(realpath "${token_files[i]}"); done
seqlen=$3
shift 3
out=$S2O_ROOT/results/tables
if [ $# -gt 0 ] && [ "$1" != "--" ]; then
  [[ $1 == /* ]] && out=$1 || out=$invoked_from/$1
  shift
fi
if [ $# -gt 0 ] && [ "$1" = "--" ]; then shift; fi
eval_options=("$@")

cd "$S2O_ROOT"
s2o_build_program
mkdir -p "$out/runs" "$out/tables" "$out/figures"

# runs CONFIG: evaluates it on every token file, and leaves its result folders in ${run_folders[@]}.
runs() {
  run_folders=()
  local tokens
  for tokens in "${token_files[@]}"; do
    echo "$1 on $(basename "$tokens"), $seqlen tokens" >&2
    evaluate "$1" "$(basename "${tokens%.*}")" --set "inputs.0.model=$model" \
      --set "inputs.0.tokens=$tokens" --set "inputs.0.seqlen=$seqlen" "${eval_options[@]}"
  done
}

# synthetic_runs CONFIG PATTERNS: the same on structured synthetic inputs, one group of 4 heads each.
synthetic_runs() {
  run_folders=()
  echo "$1 on synthetic input, $seqlen tokens" >&2
  evaluate "$1" synthetic --set "inputs=[{\"source\": \"synthetic\", \"pattern\": [$2],
    \"seqlen\": $seqlen, \"num_q_heads\": 4, \"num_kv_heads\": 1}]"
}

runs frontier
frontier_folders=("${run_folders[@]}")
table frontier frontier
table matched_sparsity matched_sparsity
table matched_sparsity matched_sparsity_by_layer --unit layer
table matched_mse matched_mse
table matched_mse matched_mse_by_layer --unit layer
table per_head per_head --sparsity 0.8
table latency latency
figure frontier frontier "${run_folders[@]}"
figure frontier frontier_by_layer "${run_folders[@]}" --by layer
figure density_by_head density_by_head "${run_folders[@]}"
figure stop_depth stop_depth "${run_folders[@]}"
figure latency latency "${run_folders[@]}"
for name in matched_sparsity matched_mse; do
  figure "$name" "$name" "$out/tables/$name.json"
  figure "$name" "${name}_by_layer" "$out/tables/${name}_by_layer.json"
done

synthetic_runs frontier '"mixed", "needles"'
table matched_sparsity matched_sparsity_synthetic
figure frontier frontier_synthetic "${run_folders[@]}"

runs ablations
table ablations ablations --sparsity 0.6,0.7,0.8,0.9
figure ablations ablations "$out/tables/ablations.json"

synthetic_runs ablations '"mixed"'
table ablations ablations_synthetic --sparsity 0.6,0.7,0.8,0.9

runs ablations_plus
table ablations ablations_plus --reference s2o_plus --sparsity 0.6,0.7,0.8,0.9
figure ablations ablations_plus "$out/tables/ablations_plus.json"

synthetic_runs ablations_plus '"mixed"'
table ablations ablations_plus_synthetic --reference s2o_plus --sparsity 0.6,0.7,0.8,0.9

token_files=("${token_files[0]}")
runs compensation
run_folders+=("${frontier_folders[0]}")
table compensation compensation --sparsity 0.7,0.8,0.9
figure compensation compensation "$out/tables/compensation.json"

# A local head and one that reads by content, in the test model.
for layer in 1 3; do
  "$S2O" heatmap --config configs/tables/heatmap.json --set "inputs.0.model=$model" \
    --set "inputs.0.tokens=${token_files[0]}" --set "inputs.0.seqlen=$seqlen" \
    --layer "$layer" --head 0 --out "$out/figures/heatmap_layer$layer.png" || failed=1
done
echo "tables:  $out/tables" >&2
echo "figures: $out/figures" >&2
exit "$failed"
