# What make_real_tables.sh makes of runs: tables and figures. Source it, do not run it. Uses $S2O (the program),
# $out (the folder of results) and $configs; sets failed=1 when a table or figure could not be made, which does
# not keep back the others.

failed=0

# evaluate CONFIG NAME EVAL_OPTION...: results in OUT/runs/CONFIG-NAME, added to ${run_folders[@]}.
evaluate() { run_resumed eval "$@"; }
# prefill CONFIG NAME PREFILL_OPTION...: the same of whole prefills.
prefill() { run_resumed prefill "$@"; }
run_resumed() {
  local folder=$out/runs/$2-$3 status=0
  "$S2O" "$1" --config "$configs/$2.json" "${@:4}" --out "$folder" --resume \
    >"$folder.txt" || status=$?
  # 1: some cells failed; the tables say which units they lack.
  [ "$status" -le 1 ] || exit "$status"
  run_folders+=("$folder")
}

# table NAME FILE [OPTION...]: one table in all formats from ${run_folders[@]}.
table() {
  local name=$1 file=$2 format extension
  shift 2
  for format in text:txt markdown:md csv:csv latex:tex json:json; do
    extension=${format#*:}
    "$S2O" table "${run_folders[@]}" --table "$name" --format "${format%:*}" "$@" \
      >"$out/tables/$file.$extension" || failed=1
  done
}

# figure KIND NAME INPUT... [OPTION...]
figure() {
  local kind=$1 name=$2
  shift 2
  /usr/bin/python3 scripts/plot.py "$kind" "$@" --out "$out/figures/$name" || failed=1
}
