"""A laptop or small server without an accelerator: two cores, 4 GB for one process."""

from configs.devices import Preset

PRESET = Preset(
    platform="cpu",
    budget_bytes=4_000_000_000,
    shared=True,
    environment={"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"},
    limits={"features.batch_size": 8, "train.resident_bytes": 1_000_000_000},
    values={
        "llm.dtype": "float32",
        "train.compute_dtype": "float32",
        "train.steps_per_dispatch": 1,
    },
)
