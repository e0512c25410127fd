#!/usr/bin/env bash
# On the board: Python, an environment, our package and the wheels that build.sh made.
#
#   third_party/jetson/install.sh --jetpack=6.2 --wheels=wheels [--venv=.venv] [--dry_run]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=third_party/jetson/options.sh
source "$here/options.sh"
JETPACK="" WHEELS=wheels VENV=.venv
options jetpack wheels venv -- "$@"
# shellcheck source=third_party/jetson/versions.sh
source "$here/versions.sh"
cd "$here/../.."

# JetPack 6 comes with Python 3.10; ours starts at 3.11.
if ! command -v "python$PYTHON" >/dev/null; then
  run sudo add-apt-repository -y ppa:deadsnakes/ppa
fi
run sudo apt-get install -y "python$PYTHON" "python$PYTHON-venv" libsndfile1
run "python$PYTHON" -m venv "$VENV"
# Our own wheels first: pip would take jaxlib for servers, which has no code for this GPU.
constraints=()
[ -z "$CONSTRAINTS" ] || constraints=(-c "$CONSTRAINTS")
run "$VENV/bin/pip" install "${constraints[@]}" "jax==$JAX" "$WHEELS"/jaxlib-*.whl "$WHEELS"/jax_cuda*.whl
run "$VENV/bin/pip" install "${constraints[@]}" "jax==$JAX" -e .
run "$VENV/bin/python" -c 'import jax, jax.numpy as jnp; print(jax.devices(), float((jnp.ones((256, 256)) @ jnp.ones((256, 256)))[0, 0]))'
run "$VENV/bin/python" -m experiments.benchmark --preset=orin_8gb --smoke
