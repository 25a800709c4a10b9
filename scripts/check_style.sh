#!/usr/bin/env bash
# House rules that a grep can hold, and formatting. Run by ctest; borders between folders are
# check_layers.py's. Exit code 77, which ctest shows as skipped: the rules hold, the formatter is
# missing.
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

complain "headers need #pragma once" \
  "$(find app lib kernels -name '*.h' -o -name '*.cuh' | xargs grep -L '#pragma once')"
complain "no using namespace at file scope" "$(grep -rn '^using namespace' app lib kernels)"

formatter=$(command -v clang-format-14 || command -v clang-format)
if [ -n "$formatter" ] && "$formatter" --version | grep -q 'version 14\.'; then
  unformatted=$(find app lib kernels \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) \
    -print0 | xargs -0 "$formatter" --dry-run 2>&1 | grep -oE '^[^:]+:[0-9]+' | sort -u | head -20)
  complain "clang-format-14 -i would change" "$unformatted"
  skipped=0
else
  echo "clang-format-14 not found: formatting NOT checked"
  skipped=77
fi
[ "$failures" -eq 0 ] || exit 1
exit "$skipped"
