"""NVIDIA Jetson Orin Nano with 4 GB, shared by CPU and GPU: about 2.7 GiB are free without a desktop."""

from configs.devices import Preset, orin_8gb

PRESET = Preset(
    platform="gpu",
    budget_bytes=2_600_000_000,
    shared=True,
    environment={**orin_8gb.PRESET.environment, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.50"},
    limits={
        "encoder.window_s": 10.24,
        "features.batch_size": 2,
        "train.batch_size": 8,
        "train.num_buckets": 2,
        "train.resident_bytes": 100_000_000,
    },
    values=orin_8gb.PRESET.values,
)
