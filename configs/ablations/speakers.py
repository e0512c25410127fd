"""How many voices are enough? All utterances of so many training speakers.

python -m experiments.sweep --config=configs/ablations/speakers.py:screen --sweep=speakers,seed --workdir=workdirs/speakers
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed


def sweep_speakers():
    """Doubling; 0 keeps all."""
    for count in (8, 16, 32, 64, 0):
        yield {"split.train_speakers": count, "label": str(count or "all")}
