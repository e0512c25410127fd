"""AdamW with warm-up and cosine decay over the trainable tree."""

import dataclasses
import functools

import jax
import optax

from tiny_align_jax.types import ConfigError, PyTree


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
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate={self.learning_rate}; expected a positive number")


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
            mask=_is_matrix,
        )
    )
    return optax.chain(*parts)


def _is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.ndim >= 2, params)
