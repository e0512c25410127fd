"""Raspberry Pi 5 with 8 GB: four CPU cores, 64-bit system, no accelerator.

float32 throughout: without bfloat16 units, XLA keeps float32 copies of bfloat16 weights. Four threads
of XLA share the cores, so the libraries beside it get one each.
"""

from configs.devices import Preset

PRESET = Preset(
    platform="cpu",
    budget_bytes=6_800_000_000,
    shared=True,
    environment={
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_MAX_SIZE": "1000000000",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    },
    limits={
        "encoder.window_s": 10.24,
        "features.batch_size": 4,
        "train.batch_size": 16,
        "train.num_buckets": 2,
        "train.resident_bytes": 500_000_000,
    },
    values={
        "llm.dtype": "float32",
        "train.compute_dtype": "float32",
        "train.steps_per_dispatch": 1,
    },
)
