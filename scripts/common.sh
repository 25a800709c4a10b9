# Shared by quickstart.sh and test.sh: packages, CUDA detection, configure. Source it, do not run it.

S2O_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# What a build needs, and what the tests need beside it (Debian 12 names).
S2O_BUILD_PACKAGES=(g++ cmake ninja-build git pkg-config libcli11-dev nlohmann-json3-dev
  libeigen3-dev libfmt-dev libspdlog-dev libhdf5-dev zlib1g-dev libpng-dev python3-matplotlib
  python3-numpy)
S2O_TEST_PACKAGES=(libgtest-dev libgmock-dev libbenchmark-dev clang-format-14 python3-dev python3-venv
  openmpi-bin libopenmpi-dev)
# What the Python module is built with and tested with, from PyPI.
S2O_PYTHON_PACKAGES=(scikit-build-core nanobind numpy pytest ml_dtypes h5py)
# What scripts/fuzz.sh needs beside both.
S2O_FUZZ_PACKAGES=(clang-19 libomp-19-dev libclang-rt-19-dev)

# Installs the packages that are missing; says what to run when it may not.
s2o_ensure_packages() {
  local missing=()
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" ||
      missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return 0
  if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (Debian names); no apt-get here, install their equivalents" >&2
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages; as root run:" >&2
    echo "  apt-get update && apt-get install -y ${missing[*]}" >&2
    return 1
  fi
  echo "installing: ${missing[*]}" >&2
  apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# Makes a virtual environment with S2O_PYTHON_PACKAGES, once, and sets S2O_VENV to its folder.
s2o_ensure_venv() {
  S2O_VENV=$S2O_ROOT/build/venv
  local done=$S2O_VENV/${S2O_PYTHON_PACKAGES[*]}
  [ -f "${done// /,}" ] && return 0
  echo "installing into $S2O_VENV: ${S2O_PYTHON_PACKAGES[*]}" >&2
  python3 -m venv "$S2O_VENV"
  "$S2O_VENV/bin/python" -m pip install -q --disable-pip-version-check "${S2O_PYTHON_PACKAGES[@]}" >&2
  touch "${done// /,}"
}

# Puts nvcc on the PATH where the toolkit is installed; fails where it is not.
s2o_find_nvcc() {
  command -v nvcc >/dev/null && return 0
  if [ -x /usr/local/cuda/bin/nvcc ]; then
    PATH="/usr/local/cuda/bin:$PATH"
    export PATH
    return 0
  fi
  return 1
}

# A GPU and its driver are here.
s2o_has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# Builds the program, with CUDA where toolkit and GPU are here, and sets S2O to its path.
s2o_build_program() {
  local preset=cpu
  s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}"
  if s2o_find_nvcc && s2o_has_gpu; then preset=cuda; fi
  echo "building s2o ($preset)" >&2
  local folder=$S2O_ROOT/build/quickstart-$preset
  cmake --preset "$preset" -S "$S2O_ROOT" -DS2O_TESTS=OFF -DS2O_BENCHMARKS=OFF \
    -DS2O_UNITY=ON -B "$folder" >/dev/null
  cmake --build "$folder" --target s2o >&2
  S2O=$folder/s2o
}
