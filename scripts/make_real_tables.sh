#!/usr/bin/env bash
# Regenerates the tables and figures of results/real.md: attention and predictions of real language
# models. Safe to interrupt and to run again: what was computed is kept.
#
#   scripts/make_real_tables.sh [--smollm2 FOLDER] [--qwen FOLDER] [OPTION...] [OUT]
#
# FOLDERs are Hugging Face folders (scripts/fetch_models.sh brings both); without one its parts are
# left out. SmolLM2 runs at 8,192 tokens, Qwen2.5-Coder at 32,768 and, with YaRN, at 131,072. Text: the
# books of data/tokens and the standard library of Python, in each model's tokens.
#
#   --parts LIST     with commas [all]: attention (error, density and time of Q, K, V of layers), loss
#                    (held-out loss and divergence of whole prefills), retrieval, oracles, lengths (default
#                    settings at 8,192, 32,768 and 131,072 tokens of the book) and ablation (of S2O and S2O+;
#                    a few layers), tiled (S2O+ on the book of 131,072 tokens in the shape of
#                    Llama-3.1-8B, Qwen's heads repeated), heatmaps (CPU, of the shipped capture), tables (of all
#                    that OUT holds by then)
#   --texts LIST     of attention and loss [book,code]
#   --build FOLDER   of a built s2o [built here]
#   --device DEVICE  cuda or cpu [cuda where there is one]. On the CPU, Qwen needs days: use SmolLM2
#   --samples N      prompts of each task and length [50]
#   --budget SECONDS for each run of s2o; what is missing then is computed by the next call, a capture from
#                    its beginning: leave it the time of one [none]
#   OUT              [results/real]. It belongs to the models that it was begun with.
#
# Exit codes: 0 done, 1 something is missing (a run cut off by --budget, a cell or a figure that failed; it
# says which), 2 usage, others as of s2o.
#
# Tables: OUT/tables/*.{txt,md,csv,tex,json}; figures: OUT/figures/*.{pdf,png}; captures, the largest
# files by far: OUT/captures.
set -euo pipefail
invoked_from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"
configs=configs/real

refuse() {
  echo "make_real_tables.sh: $*; --help explains" >&2
  exit 2
}

smollm2="" qwen="" build="" device="" samples=50 budget="" out=""
all_parts=attention,loss,retrieval,oracles,lengths,ablation,tiled,heatmaps,tables all_texts=book,code
parts=$all_parts texts=$all_texts
while [ $# -gt 0 ]; do
  case "$1" in
    --smollm2 | --qwen | --parts | --texts | --build | --device | --samples | --budget)
      [ -n "${2:-}" ] || refuse "$1: a value is missing"
      declare "${1#--}=$2"
      shift 2
      ;;
    -h | --help) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'; exit 0 ;;
    -*) refuse "$1: no such option" ;;
    *)
      [ -z "$out" ] || refuse "$1: a second OUT beside $out"
      out=$1
      shift
      ;;
  esac
done

# model_folder OPTION FOLDER
model_folder() {
  local file
  for file in config.json tokenizer.json; do
    [ -f "$2/$file" ] || refuse "$1 $2: no $file there, expected a Hugging Face folder"
  done
  compgen -G "$2/model*.safetensors" >/dev/null ||
    refuse "$1 $2: no model*.safetensors there, expected weights as safetensors"
  realpath -- "$2"
}
# some_of OPTION LIST KNOWN
some_of() {
  local item
  for item in ${2//,/ }; do
    [[ ,$3, == *,$item,* ]] || refuse "$1: found '$item', expected some of $3"
  done
}
# at_least_1 OPTION NUMBER
at_least_1() { [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || refuse "$1: found '$2', expected a positive number"; }

[ -n "$smollm2$qwen" ] || refuse "no model: name --smollm2 FOLDER, --qwen FOLDER or both"
[ -z "$smollm2" ] || smollm2=$(model_folder --smollm2 "$smollm2")
[ -z "$qwen" ] || qwen=$(model_folder --qwen "$qwen")
# Token files have the name of the folder.
if [ "$(basename "$smollm2")" = "$(basename "$qwen")" ]; then
  refuse "--smollm2 $smollm2, --qwen $qwen: two folders of one name, expected different names"
fi
parts=${parts// /} texts=${texts// /}
some_of --parts "$parts" $all_parts
some_of --texts "$texts" $all_texts
at_least_1 --samples "$samples"
[ -z "$budget" ] || at_least_1 --budget "$budget"
if [ -n "$build" ]; then
  [ -f "$build/s2o" ] && [ -x "$build/s2o" ] || refuse "--build $build: no program s2o there"
  build=$(realpath -- "$build")
fi
case "$device" in cpu | cuda | "") ;; *) refuse "--device: found '$device', expected cuda or cpu" ;; esac
case "$out" in "") out=$S2O_ROOT/results/real ;; /*) ;; *) out=$invoked_from/$out ;; esac
if [ -z "$device" ]; then
  device=cpu
  if s2o_has_gpu; then device=cuda; fi
fi

cd "$S2O_ROOT"
if [ -n "$build" ]; then S2O=$build/s2o; else s2o_build_program; fi
mkdir -p "$out"/{runs,tables,figures,captures,text,models}
if [ -n "$budget" ]; then
  program=$S2O
  S2O=within_budget
fi
# A signal ends a run of s2o with its results written; the next call goes on. In the foreground, so that
# Ctrl-C reaches it.
within_budget() { timeout --foreground --signal=INT --kill-after=30 "$budget" "$program" "$@"; }

# check_model NAME FOLDER: what OUT holds was computed with this model.
check_model() {
  local known=$out/models/$1.sha256 now
  # The beginning of the weights names and sizes them all, and holds some.
  now=$({ cat "$2/config.json"; head -qc 1000000 "$2"/model*.safetensors; } | sha256sum | cut -d ' ' -f 1)
  [ -s "$known" ] || echo "$now" >"$known"
  [ "$(cat "$known")" = "$now" ] || refuse "--$1 $2: not the model that $out was begun with; name another OUT"
}
if [ "$parts" != tables ]; then
  [ -z "$smollm2" ] || check_model smollm2 "$smollm2"
  [ -z "$qwen" ] || check_model qwen "$qwen"
fi

has_part() { [[ ,$parts, == *,$1,* ]]; }
has_text() { [[ ,$texts, == *,$1,* ]]; }

# evaluate and prefill of tables.sh, for parts that were asked for; other parts of OUT count for its
# tables if they were ever run.
run_if() {
  local part=$1 folder=$out/runs/$3-$4
  shift
  if has_part "$part"; then
    "$@"
  elif [ -e "$folder/results.json" ]; then
    run_folders+=("$folder")
  fi
}

# text MODEL KIND TOKENS: token file in $text.
text() {
  text=$out/text/$(basename "$1")-$2-$3.safetensors
  [ -s "$text" ] || python3 scripts/make_tokens.py --tokenizer "$1/tokenizer.json" "--$2" \
    --tokens "$3" --out "$text"
}

# with_yarn MODEL: the same weights for 131,072 tokens, in $yarn; a model that reaches so far is left as it is.
with_yarn() {
  yarn=$out/models/$(basename "$1")-yarn
  mkdir -p "$yarn"
  ln -sf "$1"/* "$yarn/"
  rm -f "$yarn/config.json"
  python3 - "$1/config.json" "$yarn/config.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
length = config["max_position_embeddings"]
if length < 131072:
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(key) or {}
    found = rope.get("rope_type", rope.get("type", "default"))
    if found != "default":
        sys.exit(f"{sys.argv[1]}: {key} of type {found} for {length} tokens, expected none, or 131072 tokens")
    config[key] = {"rope_type": "yarn", "factor": 131072 / length, "original_max_position_embeddings": length}
    if "rope_theta" in rope:
        config[key]["rope_theta"] = rope["rope_theta"]
    config["max_position_embeddings"] = 131072
json.dump(config, open(sys.argv[2], "w"), indent=2)
PYTHON
}

# capture_layers MODEL TEXT SEQLEN LAYERS NAME: Q, K and V of these layers in $captured; fails where --budget
# cut it off.
capture_layers() {
  local status=0
  captured=$out/captures/$5.safetensors
  if [ -s "$captured" ]; then return 0; fi
  echo "capture: $5" >&2
  "$S2O" capture --device "$device" --model "$1" --tokens "$2" --seqlen "$3" --layers "$4" \
    --out "$captured" || status=$?
  [ "$status" -ne 0 ] || return 0
  cut_off "$status" "capture of $5" "begins it again"
  return 1
}

# attention PART CONFIG MODEL NAME KIND SEQLEN LAYERS [SOME_OF_THEM]: results in NAME-KIND-SEQLEN.
attention() {
  local name=$4-$5-$6
  captured=$out/captures/$name.safetensors
  if has_part "$1"; then
    text "$3" "$5" "$6"
    capture_layers "$3" "$text" "$6" "$7" "$name" || return 0
    echo "$2: $name" >&2
  fi
  run_if "$1" evaluate "$2" "$name" --device "$device" --set "inputs=[{\"source\": \"dump\",
    \"path\": \"$captured\", \"name\": \"$name\", \"layers\": [${8:-$7}]}]"
}

# losses MODEL KIND SEQLEN NAME
losses() {
  text=""
  if has_part loss; then
    text "$1" "$2" "$3"
    echo "loss: $4" >&2
  fi
  run_if loss prefill loss "$4" --device "$device" --set "model=\"$1\"" \
    --set "prompts=[{\"tokens\": \"$text\", \"seqlen\": $3, \"name\": \"$2\"}]"
}

# retrieval CONFIG MODEL LENGTHS NAME SYSTEM
retrieval() {
  local tasks=$out/text/$4-tasks.jsonl
  if has_part retrieval; then
    text "$2" book 131072
    if [ ! -s "$tasks" ]; then
      python3 scripts/make_tasks.py --tokenizer "$2/tokenizer.json" --text "$text" \
        --tasks niah_single,niah_multi_key,niah_multi_value,variable_tracking --lengths "$3" \
        --samples "$samples" --template chatml --system "$5" --out "$tasks"
    fi
    local lengths=${3//[^,]/} found
    found=$(wc -l <"$tasks")
    [ "$found" -eq $(((${#lengths} + 1) * 4 * samples)) ] ||
      refuse "--samples $samples: $tasks holds $found prompts of another number; name another OUT, or" \
        "remove that file and $out/runs/$1-$4"
    echo "retrieval: $4" >&2
  fi
  run_if retrieval prefill "$1" "$4" --device "$device" --set "model=\"$2\"" \
    --set "prompts=[{\"prompts\": \"$tasks\"}]"
}

# Dense attention of others in the shapes of these runs, in ${peer_options[@]}.
peer_options=()
peers() {
  local file=$out/runs/peers-$1.json
  [ "$device" = cuda ] || return 0
  if [ ! -s "$file" ]; then
    # Without PyTorch there are no peers, and the tables do without.
    python3 scripts/bench_peers.py --format json --repeats 10 --seqlen "$2" --num-q-heads "$3" \
      --num-kv-heads "$4" --head-dim "$5" >"$file.new" || return 0
    mv -f "$file.new" "$file"
  fi
  peer_options+=(--peers "$file")
}

# Tables of ${run_folders[@]}, one set for each run: inputs are not pooled.
has_tables() { has_part tables && [ ${#run_folders[@]} -gt 0 ]; }
attention_tables() {
  has_tables || return 0
  table frontier "frontier-$1"
  table matched_sparsity "matched_sparsity-$1" --sparsity 0.7,0.8,0.9,0.95
  table matched_mse "matched_mse-$1" --sparsity 0.7,0.8,0.9,0.95
  table matched_error "matched_error-$1" "${peer_options[@]}"
  figure frontier "frontier-$1" "${run_folders[@]}"
  if [ "$device" = cuda ]; then
    figure matched_error "matched_error-$1" "$out/tables/matched_error-$1.json"
  fi
}

# loss_tables NAME: density and time at equal divergence and at equal loss, and every setting.
loss_tables() {
  has_tables || return 0
  local on
  table end_to_end "loss-$1"
  for on in kl_from_dense held_out_loss; do match_on "$on" "matched_$on-$1"; done
  for on in divergence loss loss_by_position; do figure "$on" "$on-$1" "${run_folders[@]}"; done
}

qwen_layers=2,6,14,22,26
smollm2_layers=3,9,17,25,29
# What each model's own chat template says where a prompt has no system message.
qwen_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
smollm2_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
if [ -n "$qwen" ]; then
  with_yarn "$qwen"
  if has_part attention || has_part tables; then peers qwen 32768,131072 12 2 128; fi
fi

# kind TEXT: attention and predictions of one kind of text.
kind() {
  if [ -n "$qwen" ]; then
    run_folders=()
    attention attention attention "$qwen" qwen "$1" 32768 "$qwen_layers"
    attention_tables "qwen-$1-32768"
    run_folders=()
    attention attention attention "$yarn" qwen "$1" 131072 "$qwen_layers"
    attention_tables "qwen-$1-131072"
    run_folders=()
    losses "$qwen" "$1" 32768 "qwen-$1-32768"
    loss_tables "qwen-$1-32768"
    run_folders=()
    losses "$yarn" "$1" 131072 "qwen-$1-131072"
    loss_tables "qwen-$1-131072"
  fi
  if [ -n "$smollm2" ]; then
    run_folders=()
    attention attention attention "$smollm2" smollm2 "$1" 8192 "$smollm2_layers"
    attention_tables "smollm2-$1-8192"
    run_folders=()
    losses "$smollm2" "$1" 8192 "smollm2-$1-8192"
    loss_tables "smollm2-$1-8192"
  fi
}
for of in book code; do
  if has_text $of; then kind $of; fi
done
# One figure of the tables at equal error that are there.
if has_part tables && [ "$device" = cuda ]; then
  matched=()
  for name in book-32768 book-131072 code-32768 code-131072; do
    file=$out/tables/matched_error-qwen-$name.json
    [ ! -s "$file" ] || matched+=("$file")
  done
  [ ${#matched[@]} -eq 0 ] || figure matched_error matched_error "${matched[@]}"
fi

run_folders=()
if [ -n "$qwen" ]; then
  retrieval retrieval "$qwen" 4096,16384,32768 qwen "$qwen_system"
  retrieval retrieval_long "$yarn" 131072 qwen-yarn "$qwen_system"
fi
[ -z "$smollm2" ] || retrieval retrieval "$smollm2" 4096 smollm2 "$smollm2_system"
if has_tables; then table retrieval retrieval; fi

run_folders=()
[ -z "$qwen" ] || attention oracles oracles "$qwen" qwen book 32768 "$qwen_layers" 14
[ -z "$smollm2" ] || attention oracles oracles "$smollm2" smollm2 book 8192 "$smollm2_layers" 17
if has_tables; then table frontier frontier-oracles; fi

if [ -n "$qwen" ]; then
  run_folders=()
  for length in 8192 32768; do
    attention lengths lengths "$qwen" qwen book $length "$qwen_layers"
  done
  attention lengths lengths "$yarn" qwen book 131072 "$qwen_layers"
  if has_tables; then table latency lengths; fi
fi

if [ -n "$smollm2" ]; then
  run_folders=()
  attention ablation ablation "$smollm2" smollm2 book 8192 "$smollm2_layers"
  if has_tables; then table matched_error ablation-smollm2 --by-family; fi
fi
if [ -n "$qwen" ]; then
  for of in book code; do
    has_text $of || continue
    run_folders=()
    attention ablation ablation "$qwen" qwen $of 32768 "$qwen_layers" 6,14,22
    attention ablation ablation "$yarn" qwen $of 131072 "$qwen_layers" 6,14,22
    if has_tables; then table matched_error "ablation-$of" --by-family; fi
  done
fi

if [ -n "$qwen" ]; then
  run_folders=() peer_options=()
  name=qwen-llama_shape-131072
  tiled=$out/captures/$name.safetensors
  if has_part tiled; then
    text "$yarn" book 131072
    if capture_layers "$yarn" "$text" 131072 "$qwen_layers" qwen-book-131072; then
      [ -s "$tiled" ] || python3 scripts/tile_heads.py "$captured" "$tiled" --num-q-heads 32 \
        --num-kv-heads 8
      echo "tiled: $name" >&2
    fi
  fi
  if ! has_part tiled || [ -s "$tiled" ]; then
    run_if tiled evaluate tiled "$name" --device "$device" --set "inputs=[{\"source\": \"dump\",
      \"path\": \"$tiled\", \"name\": \"$name\", \"layers\": [$qwen_layers]}]"
  fi
  if has_part tiled || has_part tables; then peers llama_shape 131072 32 8 128; fi
  if has_tables; then table matched_error "matched_error-$name" "${peer_options[@]}"; fi
fi

# Of the shipped capture: a head that reads near by, one that reads by content, one that rests on the
# first tokens (data/smollm2/README.md).
if has_part heatmaps; then
  for layer in 11 20 25; do
    "$S2O" heatmap --config configs/real/heatmap.json --layer "$layer" --pixels 320 \
      --out "$out/figures/heatmap-$layer.png" || failed=1
  done
fi
if has_part tables && ! compgen -G "$out/runs/*/results.json" >/dev/null; then
  echo "no results in $out/runs to make tables of; other parts compute them: $all_parts" >&2
  failed=1
fi
echo "tables:  $out/tables" >&2
echo "figures: $out/figures" >&2
exit "$failed"
