"""A cross, not a product: every axis through one point, the published recipe, all in one table.

    python -m experiments.reproduce_cross --stage=screen --workdir=workdirs/cross      # a seed, 600 steps
    python -m experiments.reproduce_cross --stage=full --workdir=workdirs/cross        # best five, three seeds

or `python -m experiments.sweep --config=configs/ablations/cross.py:screen --sweep=cell,learning_rate ...`.
Cells that cannot exist are listed with the reason. Wording and snap mode need no training of their own:
configs/ablations/instruction.py and snap.py.
"""

from configs import so762
from configs.ablations import (
    _base,
    augmentation,
    data_fraction,
    encoder,
    num_tokens,
    objective,
    pooling,
    positions,
    projector,
    speakers,
)
from tiny_align_jax import sweep

sweep_seed = _base.sweep_seed


def get_config(arg: str = ""):
    """`arg`: '' the recipe of configs/so762.py, 'screen' 600 steps on utterances up to 10.24 s.

    A screen's batches have one length, so that a cell is one program, and it is validated once.
    """
    if arg not in ("", "screen"):
        raise ValueError(f"cross: unknown argument {arg!r}; expected '' or 'screen'")
    config = so762.get_config().unlock()
    if arg == "screen":
        config.encoder.window_s = 10.24
        config.features.too_long = "skip"
        config.train.update(num_steps=600, num_buckets=1)
    return config.lock()


def sweep_cell():
    """Every value of every axis; equal trainings run once."""
    axes = {
        "projector": projector.sweep_projector(),
        "objective": objective.sweep_objective(),
        "positions": positions.sweep_positions(),
        "pooling": pooling.sweep_pooling(),
        "T": _cast_to_tokens(),
        "encoder": encoder.sweep_encoder(),
        "augmentation": augmentation.sweep_augmentation(),
        "data": data_fraction.sweep_data_fraction(),
        "voices": speakers.sweep_speakers(),
    }
    for axis, values in axes.items():
        for value in values:
            yield dict(value) | {"label": f"{axis}: {sweep.label_of(value)}"}


def sweep_learning_rate():
    """Two, so that no cell loses by the other one's rate."""
    for rate in (5e-4, 1.5e-3):
        yield {"optimizer.learning_rate": rate}


def _cast_to_tokens():
    for cast in num_tokens.sweep_cast():
        for tokens in num_tokens.sweep_num_tokens():
            count = tokens["projector.bridgeformer.num_tokens"]
            yield _base.embedlink() | cast | tokens | {"label": f"{cast['label']} {count}"}
