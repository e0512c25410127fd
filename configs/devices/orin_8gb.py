"""NVIDIA Jetson Orin Nano or NX with 8 GB, shared by CPU and GPU; no board has been tried yet.

Linux shows 7.3 to 7.6 GiB of it and 6.1 to 6.6 GiB are free without a desktop. JAX would take three
quarters of the total at once and starve the host, so it takes what it needs, when it needs it.
"""

from configs.devices import Preset

PRESET = Preset(
    platform="gpu",
    budget_bytes=6_000_000_000,
    shared=True,
    environment={
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.70",
        "JAX_COMPILATION_CACHE_MAX_SIZE": "1000000000",
        "TOKENIZERS_PARALLELISM": "false",
    },
    limits={
        "encoder.window_s": 10.24,
        "features.batch_size": 8,
        "train.batch_size": 16,
        "train.num_buckets": 2,
        "train.resident_bytes": 500_000_000,
    },
    values={
        "llm.dtype": "bfloat16",
        "train.compute_dtype": "bfloat16",
        "train.steps_per_dispatch": 20,
    },
)
