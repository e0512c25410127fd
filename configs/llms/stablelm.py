"""StableLM-2 as the frozen LLM on split `so762`; training needs only rows of the embedding table.

    python -m experiments.train --config=configs/llms/stablelm.py --workdir=workdirs/stablelm

Partial rotary, layer norms. Weights come from the hub unless said otherwise; those were not run here
(docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "stabilityai/stablelm-2-1_6b-chat",
}


def get_config(arg: str = ""):
    """`arg`: '' for stabilityai/stablelm-2-1_6b-chat."""
    config = so762.get_config().unlock()
    config.llm.asset = common.pick("stablelm", arg, SIZES)
    return config.lock()
