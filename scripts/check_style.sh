#!/usr/bin/env bash
# House rules that a grep can hold: layers, package owners, formatting. Run by ctest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failures=0

# complain MESSAGE MATCHES: fails when there are matches.
complain() {
  [ -z "$2" ] && return
  echo "$1:"
  echo "$2"
  failures=$((failures + 1))
}
# search PATTERN FOLDER... : -- INCLUDE_GLOBS handled by the caller through $globs
search() {
  local pattern=$1
  shift
  grep -rnE "${globs[@]}" "$pattern" "$@" 2>/dev/null
}

globs=(--include=*.cu --include=*.cuh)
complain "CUDA files include only CUDA headers and kernels/" \
  "$(search '#include *[<"](lib/|app/|fmt|spdlog|nlohmann|Eigen|H5|hdf5|CLI)' kernels lib app)"
globs=(--include=*.h --include=*.cpp --include=*.cu --include=*.cuh)
complain "kernels/ must not include lib/ or app/" "$(search '#include *"(lib|app)/' kernels)"
complain "lib/ must not include app/" "$(search '#include *"app/' lib)"
complain "lib/ must not include .cuh files" "$(search '#include *".*\.cuh"' lib app)"
complain "CLI11 belongs to app/" "$(search '#include *<CLI' lib kernels)"
complain "spdlog belongs to lib/core" "$(search '#include *<spdlog' app kernels lib | grep -v '^lib/core/')"
complain "GoogleTest belongs to tests" \
  "$(search '#include *<g(test|mock)' app lib kernels | grep -vE '/tests/|/testing/')"
complain "headers need #pragma once" \
  "$(find app lib kernels -name '*.h' -o -name '*.cuh' | xargs grep -L '#pragma once')"
complain "no using namespace at file scope" "$(search '^using namespace' app lib kernels)"

if command -v clang-format-14 >/dev/null; then
  unformatted=$(find app lib kernels \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) \
    -print0 | xargs -0 clang-format-14 --dry-run 2>&1 | grep -oE '^[^:]+:[0-9]+' | sort -u | head -20)
  complain "clang-format-14 -i would change" "$unformatted"
else
  echo "clang-format-14 not found: formatting not checked"
fi
[ "$failures" -eq 0 ]
