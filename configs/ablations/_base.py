"""What the ablations share: the published recipe, or a stated short budget to screen with."""

from configs import so762

SCREEN_STEPS = 1000
ENCODER_DIM, LLM_DIM = 512, 576  # Whisper base and SmolLM2-135M, for equal parameter counts


def get_config(arg: str = ""):
    """`arg`: '' the recipe of configs/so762.py, 'screen' a quarter of its steps, 'tiny' for two cores.

    Validated on its way, so that reports can draw quality against seconds.
    """
    config = so762.get_config("" if arg == "screen" else arg)
    if arg == "screen":
        config.train.num_steps = SCREEN_STEPS
    config.train.validate_every = config.train.num_steps // 10
    return config


def sweep_seed():
    """Three seeds."""
    yield from so762.sweep_seed()


def embedlink(**overrides):
    """The paper's objective with the projector's pooling that it needs."""
    return {
        "objective.name": "embedlink",
        "projector.bridgeformer.pooling": "adaptive",
        "projector.bridgeformer.positions": "none",
    } | overrides
