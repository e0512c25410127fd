"""Raspberry Pi 5 with 4 GB: as pi5_8gb with less of everything."""

import dataclasses

from configs.devices import pi5_8gb

PRESET = dataclasses.replace(
    pi5_8gb.PRESET,
    budget_bytes=3_000_000_000,
    limits={
        **pi5_8gb.PRESET.limits,
        "features.batch_size": 2,
        "train.batch_size": 8,
        "train.resident_bytes": 100_000_000,
    },
)
