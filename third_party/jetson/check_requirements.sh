#!/usr/bin/env bash
# Whether every requirement has a wheel for 64-bit Arm Linux: asks pip, installs nothing.
#
#   third_party/jetson/check_requirements.sh [--python=3.11] [--constraints=constraints/pinned.txt] [--pip=pip] [--dry_run]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=third_party/jetson/options.sh
source "$here/options.sh"
PYTHON=3.11 CONSTRAINTS=constraints/pinned.txt PIP=pip
options python constraints pip -- "$@"
cd "$here/../.."

platforms=() # manylinux tags of wheels that run on glibc 2.35 and later: JetPack 6, Raspberry Pi OS 12
for tag in 2014 _2_17 _2_26 _2_27 _2_28 _2_31 _2_34 _2_35; do
  platforms+=(--platform "manylinux${tag}_aarch64")
done
# rouge-score is published as source only; it is pure Python and needs these.
requirements=(nltk six)
while IFS= read -r line; do
  [[ "$line" == rouge-score* ]] || requirements+=("$line")
done < requirements.txt
run "$PIP" install --dry-run --quiet --ignore-installed --target /tmp/unused --only-binary=:all: \
  --implementation cp --python-version "$PYTHON" "${platforms[@]}" -c "$CONSTRAINTS" "${requirements[@]}"
echo "Python $PYTHON on linux-aarch64 with $CONSTRAINTS: all requirements have wheels"
