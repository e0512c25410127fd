# Pinned versions a JetPack release, read by the scripts beside. `JETPACK` is set by them.
# shellcheck shell=bash disable=SC2034
case "$JETPACK" in
  6.2) # L4T 36.4: CUDA 12.6 for Tegra, Ubuntu 22.04, whose own Python is 3.10
    JAX=0.6.2
    PYTHON=3.11
    UBUNTU=22.04
    CLANG=18
    CUDA=12.6.0
    CUDNN=9.3.0
    CUOBJDUMP=cuda-cuobjdump-12-6
    CUDA_REPO=ubuntu2204
    CONSTRAINTS=constraints/oldest.txt
    ;;
  7.2) # L4T 39.2: CUDA 13 as on Arm servers (SBSA), Ubuntu 24.04. The tag's own CUDA and cuDNN are taken.
    JAX=0.10.0
    PYTHON=3.12
    UBUNTU=24.04
    CLANG=18
    CUDA=
    CUDNN=
    CUOBJDUMP=cuda-cuobjdump-13-0
    CUDA_REPO=ubuntu2404
    CONSTRAINTS= # constraints/pinned.txt has a later jax
    ;;
  *)
    echo "JetPack '$JETPACK'; expected 6.2 or 7.2" >&2
    exit 2
    ;;
esac
