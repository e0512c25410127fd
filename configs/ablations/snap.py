"""What should the LLM get in place of the audio? Trains once and asks in every mode.

python -m experiments.sweep --config=configs/ablations/snap.py --sweep=snap --score=answer --workdir=workdirs/snap
"""

from configs.ablations import _base
from tiny_align_jax.aligner import SNAPS

get_config, sweep_seed = _base.get_config, _base.sweep_seed


def sweep_snap():
    """Every mode of `Aligner.snap`."""
    for mode in SNAPS:
        yield {"evaluation.snap": mode}
