#!/usr/bin/env bash
# Builds everything and runs the whole test suite. Where nvcc is found, the CUDA code is built too;
# tests that need a GPU are reported as skipped without one. Safe to run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$S2O_ROOT"

s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}" "${S2O_TEST_PACKAGES[@]}"
preset=cpu
if s2o_find_nvcc; then
  preset=cuda
else
  echo "nvcc not found: building without CUDA" >&2
fi

cmake --preset "$preset" >/dev/null
cmake --build "build/$preset"
# Idle OpenMP threads sleep instead of spinning, so that a busy machine does not slow the tests down.
OMP_WAIT_POLICY=passive ctest --test-dir "build/$preset" --output-on-failure
