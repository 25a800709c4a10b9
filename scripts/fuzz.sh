#!/usr/bin/env bash
# Runs every reader of files and texts under libFuzzer with sanitizers (lib/testing/fuzz). What ends
# a reader is left in build/fuzz/found. HDF5 is read in a process for each input, because libhdf5
# crashes on damaged files: what ends that process lies there too, and is no fault of ours as long as
# the reader goes on and says so.
#   scripts/fuzz.sh                 a million executions of each reader, an hour of those of HDF5
#   scripts/fuzz.sh --seconds 60    so long for each
#   scripts/fuzz.sh --seconds 60 npz results
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$S2O_ROOT"

limit=(-runs=1000000)
if [ "${1:-}" = --seconds ]; then
  limit=("-max_total_time=$2")
  shift 2
fi
s2o_ensure_packages "${S2O_BUILD_PACKAGES[@]}" "${S2O_TEST_PACKAGES[@]}" "${S2O_FUZZ_PACKAGES[@]}"
cmake --preset fuzz >/dev/null
cmake --build build/fuzz --target fuzz_readers_libfuzzer >&2
found=$S2O_ROOT/build/fuzz/found
mkdir -p "$found"

failed=0
while read -r reader files; do
  if [ $# -gt 0 ] && [[ " $* " != *" $reader "* ]]; then continue; fi
  corpus=$found/corpus-$reader
  mkdir -p "$corpus"
  # shellcheck disable=SC2086  # the list prints no name with a blank
  cp -r $files "$corpus" 2>/dev/null || true
  find "$corpus" -mindepth 2 -type f -exec mv -f {} "$corpus" \;
  log=$found/$reader.log
  reader_limit=("${limit[@]}")
  if [[ $reader = *hdf5 && ${limit[0]} = -runs=* ]]; then reader_limit=(-max_total_time=3600); fi
  if ! build/fuzz/fuzz_readers_libfuzzer "$reader" "${reader_limit[@]}" -max_len=65536 -timeout=60 \
    -rss_limit_mb=4096 -print_final_stats=1 "-artifact_prefix=$found/$reader-" "$corpus" \
    >"$log" 2>&1; then
    echo "$reader: ended, see $log" >&2
    failed=1
  fi
  echo "$reader: $(grep -o 'number_of_executed_units: *[0-9]*' "$log" | grep -o '[0-9]*$') executions"
done < <(build/fuzz/fuzz_readers_libfuzzer --list .)
exit "$failed"
