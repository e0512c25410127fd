#!/usr/bin/env bash
# Checks that every CUDA library of the wheels in a folder has machine code for Orin (sm_87).
#
#   third_party/jetson/check_wheels.sh wheels [--dry_run]
#
# Needs unzip and cuobjdump (of the CUDA toolkit; on a board in /usr/local/cuda/bin).
set -euo pipefail
folder=${1:?folder of wheels}
dry_run=${2:-}
wanted=sm_87
shopt -s nullglob
wheels=("$folder"/jax_cuda*.whl)
if [ "$dry_run" = --dry_run ]; then
  echo "unzip ${wheels[*]:-$folder/jax_cuda*.whl}; cuobjdump --list-elf each library; expect $wanted"
  exit 0
fi
command -v cuobjdump >/dev/null || { echo "no cuobjdump on PATH; add /usr/local/cuda/bin" >&2; exit 3; }
[ ${#wheels[@]} -ge 2 ] || { echo "$folder: expected a plugin and a PJRT wheel, found ${#wheels[@]}" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
checked=0
for wheel in "${wheels[@]}"; do
  unzip -q -o "$wheel" -d "$work/$(basename "$wheel")"
done
while IFS= read -r -d '' library; do
  found=$(cuobjdump --list-elf "$library" 2>/dev/null | grep -o 'sm_[0-9]*a\?' | sort | uniq -c || true)
  [ -n "$found" ] || continue # no code for a GPU in it
  checked=$((checked + 1))
  echo "${library#"$work"/}: ${found//$'\n'/ }"
  grep -q "$wanted" <<<"$found" || { echo "no $wanted in $library" >&2; exit 1; }
done < <(find "$work" -name '*.so' -print0)
[ "$checked" -gt 0 ] || { echo "no library with GPU code in ${wheels[*]}" >&2; exit 1; }
echo "$checked libraries have $wanted"
