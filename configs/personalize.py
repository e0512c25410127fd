"""How a base projector is adapted to one user, for `experiments.personalize`.

    python -m experiments.personalize --base=workdirs/so762 --config=configs/personalize.py:low_rank \\
        --speaker=0003

The argument names a method of METHODS. Which is best, by how much and on whom: docs/personalization.md.
"""

from configs import common
from tiny_align_jax.adapt import delta, fit, recipe, word_prior

_NORMS = "projector/.*(norm/(scale|bias)|/bias)"
_ENCODER_NORMS = "encoder/layers/.*(norm/(scale|bias)|/bias)"
_ENCODER_MATRICES = "encoder/layers/.*kernel"

# What a user's copy differs in. Learning rates belong to them: fewer parameters take larger ones.
METHODS = {
    "whole": {"method.offsets": ("projector/.*", "objective/.*"), "adapt.learning_rate": 1e-4},
    "norms": {"method.offsets": (_NORMS, "objective/.*"), "adapt.learning_rate": 1e-3},
    "last_layer": {"method.offsets": ("projector/output_.*",), "adapt.learning_rate": 3e-4},
    "low_rank": {"method.low_rank": ("projector/.*kernel",), "adapt.learning_rate": 1e-3},
    "speaker_vector": {"method.frames": "shift", "adapt.learning_rate": 1e-2},
    "frames_affine": {"method.frames": "affine", "adapt.learning_rate": 1e-2},
    "encoder_norms": {"method.offsets": (_ENCODER_NORMS,), "adapt.learning_rate": 1e-3},
    # The one voice that gained on test speakers, as it was scored there. For a GPU: the encoder is in every step.
    "encoder_low_rank": {
        "method.low_rank": (_ENCODER_MATRICES,),
        "adapt.learning_rate": 1e-3,
        "adapt.checkpoint": 5,
        "adapt.tolerance": 0.1,
        "adapt.replay_count": 128,
        "fit.steps_per_checkpoint": 12,
        "fit.batch_size": 4,
        "fit.replay_size": 4,
        "fit.augment.warp": 0.1,
    },
    "encoder_low_rank_16": {
        "method.low_rank": (_ENCODER_MATRICES,),
        "method.rank": 16,
        "adapt.learning_rate": 1e-3,
    },
    "encoder_both_low_rank": {  # the projector, too
        "method.low_rank": (_ENCODER_MATRICES, "projector/.*kernel"),
        "adapt.learning_rate": 1e-3,
    },
    "words": {},  # no gradient at all: what the user says tells which words to expect
}
DEFAULT = "norms"  # few parameters, a small state, seconds on two cores


def get_config(arg: str = ""):
    """`arg` is a method of METHODS."""
    config = common.ConfigDict(
        {
            "adapt": common.from_dataclass(recipe.Config()),
            "method": common.from_dataclass(delta.Method()),
            "fit": common.from_dataclass(fit.Config()),
            "word_prior": common.from_dataclass(word_prior.Config()),
        }
    )
    if (arg or DEFAULT) not in METHODS:
        raise ValueError(f"personalize: unknown method {arg!r}; there are: {', '.join(METHODS)}")
    config.update_from_flattened_dict(METHODS[arg or DEFAULT])
    return config.lock()
