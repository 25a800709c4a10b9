#!/usr/bin/env bash
# What to run on a machine with a GPU: unit tests on the device, compute-sanitizer on small shapes,
# `s2o eval` on CUDA against the CPU, logits against transformers, the Python module, and the benchmarks
# beside their peers. Goes on after a failure; the last lines say what failed. Safe to run again.
#
#   bash scripts/gpu_check.sh [--build FOLDER] [--wheel FILE] [--only PATTERN] [--no-bench]
#
# Without --build the cuda preset is configured and built. --wheel: the Python module, where it is not
# to be built from --build's folder (docs/running.md says how to make one to carry). --only: steps whose
# names match.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$S2O_ROOT"

build=""
wheel=""
only=""
bench=1
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    --wheel) wheel=${2:?--wheel needs a file}; shift 2 ;;
    --only) only=${2:?--only needs a pattern}; shift 2 ;;
    --no-bench) bench=0; shift ;;
    *) echo "unknown argument $1; usage: gpu_check.sh [--build FOLDER] [--wheel FILE] [--only PATTERN] [--no-bench]" >&2; exit 2 ;;
  esac
done

if [ -z "$build" ]; then
  s2o_find_nvcc || { echo "nvcc not found: install the CUDA toolkit, or name a build with --build" >&2; exit 4; }
  s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}" "${S2O_TEST_PACKAGES[@]}" || exit 4
  build=build/cuda
  cmake --preset cuda >/dev/null && cmake --build "$build" || exit 1
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
results=()

# step NAME COMMAND...: runs it and notes how it ended.
step() {
  local name=$1 begin=$SECONDS
  shift
  [[ $name =~ $only ]] || return 0
  echo "== $name"
  if "$@"; then
    results+=("ok      $name ($((SECONDS - begin)) s)")
  else
    results+=("FAILED  $name ($((SECONDS - begin)) s)")
  fi
}
skip() { [[ $1 =~ $only ]] && results+=("skipped $1: $2"); }

"$build/s2o" list devices
"$build/s2o" list kernels

step "unit tests on the device" "$build/gpu_tests" --gtest_brief=1
if [ -x "$build/app_tests" ]; then
  step "no memory, faulted kernels, no device" "$build/app_tests" --gtest_brief=1 --gtest_filter='*Faults*/cuda*'
else
  skip "no memory, faulted kernels, no device" "app_tests not built"
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
  sanitize() {
    "$sanitizer" --tool "$1" --error-exitcode 9 --print-limit 5 "$build/gpu_tests" --gtest_brief=1 --gtest_filter="$2"
  }
  step "memcheck on small shapes and all planners" sanitize memcheck '*GpuSmall*:*plans_of_every_method*'
  step "racecheck on small shapes" sanitize racecheck '*GpuSmall*'
else
  skip "memcheck and racecheck" "compute-sanitizer not found"
fi

# The same sweep on both devices; CUDA rounds P to 16 bits, so errors differ by about 2e-3.
evaluate() {
  "$build/s2o" eval --config configs/smoke.json --set dtype=bf16 --set timing.repeats=3 \
    --device "$1" --out "$out/$1" --format json >/dev/null
}
compare() { evaluate cpu && evaluate cuda && python3 scripts/compare_results.py "$out/cpu" "$out/cuda"; }
if command -v python3 >/dev/null; then
  step "s2o eval, cuda against cpu" compare
else
  skip "s2o eval, cuda against cpu" "python3 not found"
fi

# Models of scripts/fetch_models.sh are compared where they are.
if python3 -c 'import torch, transformers' 2>/dev/null; then
  step "logits against transformers, random models" python3 scripts/check_model.py --random --s2o "$build/s2o"
  if [ -d models/smollm2 ]; then
    step "SmolLM2 against transformers" python3 scripts/check_model.py --model models/smollm2 \
      --tokens data/tokens/smollm2_book.safetensors --s2o "$build/s2o" --loss 8192
  fi
else
  skip "logits against transformers" "needs torch and transformers"
fi

install_module() {
  local from=(--no-build-isolation -C build-dir="$(realpath "$build")" -C cmake.define.S2O_TESTS=ON
    -C cmake.define.S2O_BENCHMARKS=ON ./app/python)
  [ -z "$wheel" ] || from=(--no-index "$wheel")
  python3 -m pip install -q --no-deps --target "$out/site" "${from[@]}"
}
python_module() {
  install_module && PYTHONPATH=$out/site python3 -m pytest -q app/python/tests --s2o="$build/s2o"
}
needs="torch, pytest"
[ -n "$wheel" ] || needs+=", nanobind, scikit_build_core"
if python3 -c "import $needs" 2>/dev/null; then
  step "Python module" python_module
  [ "$bench" -eq 1 ] && step "calls from Python" \
    env PYTHONPATH="$out/site" python3 app/python/bench/overhead.py
else
  skip "Python module" "needs $needs"
fi

if [ "$bench" -eq 1 ]; then
  if [ -x "$build/bench_attention" ]; then
    step "bench_attention" "$build/bench_attention"
  else
    skip "bench_attention" "not built"
  fi
  if [ -x "$build/bench_prefill" ]; then
    step "bench_prefill" "$build/bench_prefill" --pattern mixed --peers
  else
    skip "bench_prefill" "not built"
  fi
  if python3 -c 'import torch' 2>/dev/null; then
    step "peers (PyTorch)" python3 scripts/bench_peers.py
  else
    skip "peers (PyTorch)" "torch not found"
  fi
fi

[ "${#results[@]}" -gt 0 ] || { echo "--only $only: no step has such a name" >&2; exit 2; }
echo
printf '%s\n' "${results[@]}"
! printf '%s\n' "${results[@]}" | grep -q '^FAILED'
