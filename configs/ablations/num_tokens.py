"""How many tokens should speech be cast to? T of the paper's objective, and both ways to cast.

python -m experiments.sweep --config=configs/ablations/num_tokens.py:screen --sweep=cast,num_tokens --workdir=workdirs/num_tokens
"""

from configs.ablations import _base

sweep_seed = _base.sweep_seed


def get_config(arg: str = ""):
    """As `_base.get_config`, with the paper's objective."""
    config = _base.get_config(arg)
    config.projector.bridgeformer.update(pooling="adaptive", positions="none")
    config.objective.name = "embedlink"
    return config


def sweep_num_tokens():
    """T, from fewer than a sentence has to more than any has."""
    for count in (8, 12, 16, 24, 32):
        yield {"projector.bridgeformer.num_tokens": count}


def sweep_cast():
    """End-of-text behind the transcript, or the transcript spread over all T."""
    for cast in ("pad", "stretch"):
        yield {"objective.name": "embedlink", "objective.embedlink.cast": cast, "label": cast}
