"""AdamW with warm-up and cosine decay over the trainable tree."""

import dataclasses
import functools

import jax
import optax

from tiny_align_jax import checks
from tiny_align_jax.train.partition import path_name
from tiny_align_jax.types import PyTree

_NEVER_DECAYED = ("bias", "scale")
MATRICES = "matrices"  # names vectors that hold decayed arrays only (`packed`)


@dataclasses.dataclass(frozen=True)
class Config:
    """Optimizer settings.

    Attributes:
        learning_rate: peak.
        warmup_fraction: share of the steps with a linear rise.
        final_fraction: learning rate at the end, relative to the peak.
        weight_decay: decoupled; matrices only (norms, biases and scalars keep their scale).
        clip_norm: global gradient norm over the trainable tree; 0 for none.
        b1: decay of the first moment.
        b2: decay of the second moment.
    """

    learning_rate: float = 5e-4
    warmup_fraction: float = 0.05
    final_fraction: float = 0.01
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.98

    def __post_init__(self):
        problems = checks.not_positive(self, "learning_rate")
        problems += checks.no_fraction(self, "warmup_fraction", "b1", "b2")
        problems += checks.below(self, 0, "final_fraction", "weight_decay", "clip_norm")
        checks.refuse("optimizer", problems)


def learning_rate(config: Config, num_steps: int) -> optax.Schedule:
    """Step -> learning rate."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=max(1, int(config.warmup_fraction * num_steps)),
        decay_steps=max(2, num_steps),
        end_value=config.final_fraction * config.learning_rate,
    )


@functools.lru_cache(maxsize=64)  # equal settings are one object, so equal steps share a program
def make(config: Config, num_steps: int) -> optax.GradientTransformation:
    """The optimizer; it only ever sees the trainable tree."""
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(
        optax.adamw(
            learning_rate(config, num_steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decays,
        )
    )
    return optax.chain(*parts)


def decays(params: PyTree) -> PyTree:
    """True at matrices. By name, because the stacked biases and norms of scanned layers have two axes."""

    def is_matrix(path, leaf) -> bool:
        name = path_name(path).rsplit("/", 1)[-1]
        return name == MATRICES or (leaf.ndim >= 2 and name not in _NEVER_DECAYED)

    return jax.tree_util.tree_map_with_path(is_matrix, params)
