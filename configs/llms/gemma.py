"""Gemma 2 and 3 as the frozen LLM on split `so762`; training needs only rows of the embedding table.

    python -m experiments.train --config=configs/llms/gemma.py --workdir=workdirs/gemma

The projector is matched to rows times sqrt(D), what Gemma's first layer sees. `gemma-3-270m` is packaged and
needs no hub. Weights come from the hub unless said otherwise; those were not run here
(docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "google/gemma-2-2b-it",
    "270m": "gemma-3-270m",
    "1b": "google/gemma-3-1b-it",
}


def get_config(arg: str = ""):
    """`arg`: '' for google/gemma-2-2b-it, '270m' for gemma-3-270m, '1b' for
    google/gemma-3-1b-it."""
    config = so762.get_config().unlock()
    config.llm.asset = common.pick("gemma", arg, SIZES)
    return config.lock()
