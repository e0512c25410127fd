"""How much speech is enough? Shares of the training utterances, speakers kept.

python -m experiments.sweep --config=configs/ablations/data_fraction.py:screen --sweep=data_fraction,seed --workdir=workdirs/data_fraction
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed


def sweep_data_fraction():
    """From a twentieth to all; steps stay equal."""
    for share in (0.05, 0.1, 0.25, 0.5, 1.0):
        yield {"split.train_fraction": share}
