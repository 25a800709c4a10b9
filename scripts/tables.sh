# What make_real_tables.sh makes of runs: tables and figures. Source it, do not run it. Uses $S2O (the program),
# $out (the folder of results) and $configs; sets failed=1 when a run was cut off or a table or figure could not be
# made, which does not keep back the others.

failed=0

# evaluate CONFIG NAME EVAL_OPTION...: results in OUT/runs/CONFIG-NAME, added to ${run_folders[@]}.
evaluate() { run_resumed eval "$@"; }
# prefill CONFIG NAME PREFILL_OPTION...: the same of whole prefills.
prefill() { run_resumed prefill "$@"; }
run_resumed() {
  local folder=$out/runs/$2-$3 status=0
  "$S2O" "$1" --config "$configs/$2.json" "${@:4}" --out "$folder" --resume \
    >"$folder.txt" || status=$?
  case "$status" in
    0) ;;
    # The tables say which units they lack.
    1) echo "$2-$3: some cells failed, see $folder.txt" >&2; failed=1 ;;
    *) cut_off "$status" "$2-$3" ;;
  esac
  if [ -e "$folder/results.json" ]; then run_folders+=("$folder"); fi
}

# cut_off STATUS WHAT [NEXT]: ends the script unless it was --budget that ended the run. NEXT: what the next call does.
cut_off() {
  [ "$1" -eq 124 ] || exit "$1"
  echo "$2: cut off by --budget; the next call ${3:-goes on}" >&2
  failed=1
}

# table NAME FILE [OPTION...]: one table in all formats from ${run_folders[@]}.
table() { in_all_formats "$2" table "${run_folders[@]}" --table "$1" "${@:3}"; }
# match_on ERROR FILE: tables of s2o match.
match_on() { in_all_formats "$2" match "${run_folders[@]}" --on "$1"; }

# in_all_formats FILE ARGUMENT...: what s2o prints, in OUT/tables/FILE.*. Where it fails, what was there stays.
in_all_formats() {
  local file=$out/tables/$1 format
  for format in text:txt markdown:md csv:csv latex:tex json:json; do
    if ! "$S2O" "${@:2}" --format "${format%:*}" >"$file.new"; then
      echo "no table $file" >&2
      rm -f "$file.new"
      failed=1
      return
    fi
    mv -f "$file.new" "$file.${format#*:}"
  done
}

# figure KIND NAME INPUT... [OPTION...]
figure() {
  local kind=$1 name=$2
  shift 2
  /usr/bin/python3 scripts/plot.py "$kind" "$@" --out "$out/figures/$name" && return
  echo "no figure $out/figures/$name" >&2
  failed=1
}
