"""Phi-3 and 3.5 as the frozen LLM on split `so762`; training needs only rows of the embedding table.

    python -m experiments.train --config=configs/llms/phi.py --workdir=workdirs/phi

Fused qkv and gate-up, longrope. Weights come from the hub unless said otherwise; those were not run here
(docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "microsoft/Phi-3.5-mini-instruct",
}


def get_config(arg: str = ""):
    """`arg`: '' for microsoft/Phi-3.5-mini-instruct."""
    config = so762.get_config().unlock()
    config.llm.asset = common.pick("phi", arg, SIZES)
    return config.lock()
