#!/usr/bin/env bash
# Sweeps one parameter of a method, usually its threshold, over a config's inputs:
#
#   scripts/sweep_threshold.sh CONFIG METHOD PARAM VALUES [OUT] [-- EVAL_OPTION...]
#   scripts/sweep_threshold.sh quickstart s2o tau 0.1,0.03,0.01,0.003
#
# The config's other methods run as they stand. Results, the frontier table and its figure land in
# OUT (default: results/sweep-METHOD-PARAM). Run again after an interrupt: it goes on.
set -euo pipefail
invoked_from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ $# -lt 4 ]; then
  sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
fi
config=$1 method=$2 param=$3 values=$4
shift 4
out=$S2O_ROOT/results/sweep-$method-$param
if [ $# -gt 0 ] && [ "$1" != "--" ]; then
  [[ $1 == /* ]] && out=$1 || out=$invoked_from/$1
  shift
fi
if [ $# -gt 0 ] && [ "$1" = "--" ]; then shift; fi
# A file named from the caller's folder; anything else is a name in configs/.
if [ -e "$invoked_from/$config" ]; then config=$invoked_from/$config; fi

cd "$S2O_ROOT"
s2o_build_program
status=0
"$S2O" eval --config "$config" --set "methods.$method.$param=$values" "$@" --out "$out" --resume \
  >/dev/null || status=$?
[ "$status" -le 1 ] || exit "$status"
"$S2O" table "$out" --table frontier --knob "$method=$param" | tee "$out/frontier.txt"
/usr/bin/python3 scripts/plot.py frontier "$out" --knob "$method=$param" --out "$out/frontier"
exit "$status"
