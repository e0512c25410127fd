# --jetpack, --dry_run and the like, for the scripts beside: `options NAME... -- "$@"` sets variables of these names.
# shellcheck shell=bash
DRY_RUN=0

options() {
  local allowed=" " word name
  while [ "$1" != -- ]; do
    allowed+="$1 "
    shift
  done
  shift
  for word in "$@"; do
    name=${word%%=*}
    name=${name#--}
    if [ "$word" = --dry_run ]; then
      DRY_RUN=1
    elif [[ "$word" == --*=* && "$allowed" == *" $name "* ]]; then
      printf -v "${name^^}" %s "${word#*=}"
    else
      echo "unknown argument '$word'; expected --dry_run or --NAME=VALUE with NAME one of:$allowed" >&2
      exit 2
    fi
  done
}

# Runs a command, or prints it under --dry_run.
run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
