#!/usr/bin/env bash
# Regenerates the latency tables and figures of results/latency.md on a GPU: every method at 8,192 to
# 524,288 tokens, PyTorch's dense kernels beside them where torch is installed. Some 10 minutes on an
# H200. Safe to interrupt and to run again: what was computed is kept.
#
#   scripts/make_latency_tables.sh [--build FOLDER] [OUT] [-- EVAL_OPTION...]
#
# --build: folder of a built s2o; default: built here. OUT: default results/latency.
# EVAL_OPTIONs go to every `s2o eval`, for instance --set timing.repeats=5. Tables:
# OUT/tables/latency.{txt,md,csv,tex,json}; figures: OUT/figures/*.{pdf,png}.
set -euo pipefail
invoked_from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"

build=""
out=$S2O_ROOT/results/latency
eval_options=()
device=(--device cuda)
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$(realpath "${2:?--build needs a folder}"); shift 2 ;;
    --) shift; eval_options=("$@"); break ;;
    -*) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2; exit 2 ;;
    /*) out=$1; shift ;;
    *) out=$invoked_from/$1; shift ;;
  esac
done
for option in "${eval_options[@]}"; do
  [[ $option == --device* ]] && device=()
done

cd "$S2O_ROOT"
if [ -n "$build" ]; then S2O=$build/s2o; else s2o_build_program; fi
mkdir -p "$out/runs" "$out/tables" "$out/figures"

run_folders=()
evaluate latency gpu "${device[@]}" "${eval_options[@]}"
evaluate latency_long gpu "${device[@]}" "${eval_options[@]}"

# peers FILE OPTION...: adds --peers FILE to ${peer_options[@]} if PyTorch ran here.
peer_options=()
peers() {
  local file=$out/runs/$1
  shift
  if python3 scripts/bench_peers.py --head-dim 128 --format json "$@" >"$file.new"; then
    mv "$file.new" "$file"
  else
    rm -f "$file.new"
    echo "no peers beside these tables: scripts/bench_peers.py did not run" >&2
  fi
  if [ -s "$file" ]; then peer_options+=(--peers "$file"); fi
}
peers peers.json --seqlen 8192,32768,131072 --repeats 10
peers peers_long.json --seqlen 524288 --warmup 1 --repeats 1

table latency latency "${peer_options[@]}"
for kind in latency latency_scaling; do figure "$kind" "$kind" "${run_folders[@]}"; done
echo "tables:  $out/tables" >&2
echo "figures: $out/figures" >&2
exit "$failed"
