#!/usr/bin/env bash
# Builds everything and runs the whole test suite. Where nvcc is found, the CUDA code is built too;
# tests that need a GPU are reported as skipped without one. The tests of the readers run under
# sanitizers too, and the Python module has tests of its own. Safe to run again.
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

# Idle OpenMP threads sleep instead of spinning, so that a busy machine does not slow the tests down.
export OMP_WAIT_POLICY=passive

# What reads files and configs meets damaged ones first under the address and undefined-behaviour
# sanitizers.
readers=(config_tests input_tests model_tests sources_tests)
echo "sanitizers: building the tests of the readers" >&2
cmake --preset asan -DS2O_UNITY=ON >/dev/null
cmake --build build/asan --target "${readers[@]}" fuzz_readers
# HDF5's damaged files are left to ctest: a process per file is slow here, and the library that reads
# them is not instrumented.
for tests in "${readers[@]}"; do
  "build/asan/$tests" --gtest_brief=1 --gtest_filter='-*FormatFuzz*/h5py_h5'
done

build/asan/fuzz_readers --all .

s2o_ensure_venv
cmake --preset "$preset" -DS2O_UNITY=ON -DS2O_PYTHON=ON \
  -DPython_EXECUTABLE="$S2O_VENV/bin/python" >/dev/null
cmake --build "build/$preset"

# The Python module, installed as users do, over what is built already. Its tests skip what needs
# PyTorch or a GPU.
"$S2O_VENV/bin/python" -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps \
  -C build-dir="$S2O_ROOT/build/$preset" -C cmake.define.S2O_TESTS=ON \
  -C cmake.define.S2O_BENCHMARKS=ON ./app/python
"$S2O_VENV/bin/python" -m pytest -q app/python/tests --s2o="build/$preset/s2o"

ctest --test-dir "build/$preset" --output-on-failure
