#!/usr/bin/env bash
# Sweeps one parameter of one method of a config from the shell and prints the table:
#   scripts/sweep_threshold.sh CONFIG METHOD.PARAM VALUES [eval options]
#   scripts/sweep_threshold.sh quickstart s2o.tau 0.1,0.03,0.01 --format csv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 3 ]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
config=$1 parameter=$2 values=$3
shift 3
exec "${S2O_BINARY:-build/cpu/s2o}" eval --config "$config" --set "methods.$parameter=$values" \
  --out "results/sweep_$parameter" "$@"
