#!/usr/bin/env bash
# On the board: a swap file, so that a peak at start-up does not end the process. zram (compressed memory) goes.
#
#   third_party/jetson/swap.sh [--size_gb=8] [--file=/swapfile] [--dry_run]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=third_party/jetson/options.sh
source "$here/options.sh"
SIZE_GB=8 FILE=/swapfile
options size_gb file -- "$@"

run sudo systemctl disable --now nvzramconfig
run sudo fallocate -l "${SIZE_GB}G" "$FILE"
run sudo chmod 600 "$FILE"
run sudo mkswap "$FILE"
run sudo swapon "$FILE"
echo "to keep it over a restart, add to /etc/fstab: $FILE none swap sw 0 0"
