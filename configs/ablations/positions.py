"""Does BridgeFormer need positions? The paper leaves them out.

python -m experiments.sweep --config=configs/ablations/positions.py:screen --sweep=positions --workdir=workdirs/positions
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed
KINDS = ("none", "sinusoidal", "learned", "rotary")


def sweep_positions():
    """Every kind under both objectives."""
    for kind in KINDS:
        yield {"projector.bridgeformer.positions": kind, "label": f"ctc {kind}"}
    for kind in KINDS:
        yield _base.embedlink() | {
            "projector.bridgeformer.positions": kind,
            "label": f"embedlink {kind}",
        }
