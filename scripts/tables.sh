# Shared by make_tables.sh and make_latency_tables.sh: runs, tables and figures. Source it, do not run it.
# Uses $S2O (the program) and $out (the folder of results); sets failed=1 when a table or figure could
# not be made, which does not keep back the others.

failed=0

# evaluate CONFIG NAME EVAL_OPTION...: results in OUT/runs/CONFIG-NAME, added to ${run_folders[@]}.
evaluate() {
  local folder=$out/runs/$1-$2 status=0
  "$S2O" eval --config "configs/tables/$1.json" "${@:3}" --out "$folder" --resume \
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
