#!/usr/bin/env bash
# The measurements of results/several_gpus.md, on a machine with two GPUs: a sweep as one process and as
# two ranks, one prompt on one GPU and on two, a million tokens on two.
# `scripts/gpu_check.sh` runs the tests that need two.
#
#   scripts/make_several_gpus.sh [--build FOLDER] [--parts sweep,prompt,million] [--nccl FOLDER] [OUT]
#
# --build: folder of a built s2o with bench_prefill; default: the cuda preset, built here. --nccl: as of
# s2o prefill. OUT: default results/several_gpus; what was computed there is computed again.
set -euo pipefail
invoked_from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build=""
parts=sweep,prompt,million
nccl=()
out=$S2O_ROOT/results/several_gpus
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$(realpath "${2:?--build needs a folder}"); shift 2 ;;
    --parts) parts=${2:?--parts needs a list}; shift 2 ;;
    --nccl) nccl=(--nccl "${2:?--nccl needs a folder}"); shift 2 ;;
    -*) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2; exit 2 ;;
    /*) out=$1; shift ;;
    *) out=$invoked_from/$1; shift ;;
  esac
done
parts=${parts// /}
for part in ${parts//,/ }; do
  case "$part" in sweep | prompt | million) ;; *) echo "--parts: found $part, expected sweep, prompt or million" >&2; exit 2 ;; esac
done
has() { [[ ,$parts, == *,$1,* ]]; }

cd "$S2O_ROOT"
if [ -z "$build" ]; then
  s2o_find_nvcc || { echo "nvcc not found: install the CUDA toolkit, or name a build with --build" >&2; exit 4; }
  s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}" "${S2O_TEST_PACKAGES[@]}" || exit 4
  build=build/cuda
  cmake --preset cuda >/dev/null && cmake --build "$build" --target s2o bench_prefill
fi
gpus=$("$build/s2o" list devices --format json | grep -c '"cuda:' || true)
[ "$gpus" -ge 2 ] || { echo "$gpus CUDA device(s) here, two are needed" >&2; exit 4; }
mkdir -p "$out"
failed=0

# timed NAME COMMAND...: runs it; its seconds are in ${seconds[NAME]}.
declare -A seconds
timed() {
  local name=$1 begin
  shift
  begin=$(date +%s.%N)
  echo "== $*" >&2
  "$@" >"$out/$name.txt" || { echo "FAILED: $*" >&2; failed=1; }
  seconds[$name]=$(awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
}

if has sweep; then
  timed sweep_one "$build/s2o" eval --config configs/tables/ranks.json --device cuda --out "$out/sweep_one"
  # Open MPI asks for these of root.
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  timed sweep_two mpirun -n 2 --bind-to none "$build/s2o" eval --config configs/tables/ranks.json \
    --device cuda --out "$out/sweep_two"
  python3 scripts/compare_results.py --exact "$out/sweep_one" "$out/sweep_two" >"$out/sweep_rows.txt" || failed=1
  tail -1 "$out/sweep_rows.txt"
  awk -v a="${seconds[sweep_one]}" -v b="${seconds[sweep_two]}" \
    'BEGIN { printf "sweep: one process %s s, two ranks %s s, ratio %.2f\n", a, b, a / b }'
fi
if has prompt; then
  for n in 1 2; do
    timed "prompt_$n" "$build/s2o" prefill --config configs/tables/gpus.json --device cuda --parallel "$n" \
      "${nccl[@]}" --out "$out/prompt_$n"
  done
  "$build/s2o" table "$out/prompt_1" "$out/prompt_2" --table end_to_end --format markdown | tee "$out/prompt.md"
  /usr/bin/python3 scripts/plot.py gpu_scaling "$out/prompt_1" "$out/prompt_2" --out "$out/scaling" || failed=1
fi
if has million; then
  timed million "$build/bench_prefill" --seqlen 1048576 --methods s2o_plus --set tau=0.01 --pattern mixed \
    --warmup 0 --repeats 1 --parallel 2 "${nccl[@]}"
  cat "$out/million.txt"
fi
exit "$failed"
