#!/usr/bin/env bash
# Builds jaxlib and its CUDA plugin for Jetson Orin in a container, away from the board, and checks the wheels.
#
#   third_party/jetson/build.sh --jetpack=6.2 --out=wheels [--jobs=8] [--engine=docker] [--dry_run]
#
# Best on a 64-bit Arm machine with 32 GB (hours); on an x86-64 machine the same container runs under
# qemu-user (`docker run --privileged tonistiigi/binfmt --install arm64` once), many times slower.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=third_party/jetson/options.sh
source "$here/options.sh"
# shellcheck disable=SC2034 # JOBS is read by its name below
JETPACK="" OUT=wheels JOBS=8 ENGINE=docker
options jetpack out jobs engine -- "$@"
# shellcheck source=third_party/jetson/versions.sh
source "$here/versions.sh"

arguments=()
for name in UBUNTU PYTHON CLANG CUOBJDUMP CUDA_REPO JAX CUDA CUDNN JOBS; do
  arguments+=(--build-arg "$name=${!name}")
done
run mkdir -p "$OUT"
run "$ENGINE" buildx build --platform linux/arm64 --file "$here/Containerfile" --target wheels \
  --output "type=local,dest=$OUT" "${arguments[@]}" "$here"
run ls -l "$OUT"
