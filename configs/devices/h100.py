"""One NVIDIA H100 with 80 GB of its own memory; the budget is the accelerator's."""

from configs.devices import Preset

PRESET = Preset(
    platform="gpu",
    budget_bytes=75_000_000_000,
    shared=False,
    environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"},
    values={
        "llm.dtype": "bfloat16",
        "train.compute_dtype": "bfloat16",
        "train.steps_per_dispatch": 50,
    },
)
