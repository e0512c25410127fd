"""How to adapt: everything that decides it, from config sections, and the program that it needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tiny_align_jax import checks, registry
from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.adapt import fit, word_prior
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import augment
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class Config:
    """How to adapt to one user.

    Attributes:
        learning_rate: of Adam, at its peak.
        decay: weight decay of the delta, towards the base.
        replay_weight: share of the loss that replayed utterances get.
        replay_count: utterances of the base's training that travel with it.
        num_validation: utterances held back to stop by; 0 goes to the last checkpoint unchecked.
        checkpoint: to stop at, where others gained most; the held-back utterances only speak for or against it. 0
            for the one that is best on them.
        tolerance: with `checkpoint`: how much larger than the base's their loss may be, as a share of it.
        seed: of everything drawn.
    """

    learning_rate: float = 3e-4
    decay: float = 0.0
    replay_weight: float = 0.5
    replay_count: int = 64
    num_validation: int = 3
    checkpoint: int = 0
    tolerance: float = 0.0
    seed: int = 0

    def __post_init__(self):
        problems = checks.not_positive(self, "learning_rate")
        problems += checks.no_fraction(self, "replay_weight")
        counts = ("num_validation", "replay_count", "checkpoint")
        problems += checks.below(self, 0, "decay", "tolerance", *counts)
        checks.refuse("adapt", problems)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides how a user is adapted to; made of config sections by `of_sections`."""

    adapt: Config
    method: delta_lib.Method
    fit: fit.Config
    word_prior: word_prior.Config


def of_sections(sections: Mapping[str, Any]) -> Recipe:
    """A recipe of plain config sections 'adapt', 'method', 'fit' (with 'augment' in it) and 'word_prior'.

    Raises:
        ConfigError: unknown section or key, or a value that cannot work.
    """
    makers = {"adapt": Config, "method": delta_lib.Method, "word_prior": word_prior.Config}
    strangers = sorted(set(sections) - {*makers, "fit"})
    if strangers:
        raise ConfigError(f"personalize: unknown section(s) {', '.join(strangers)}")
    sizes = dict(sections.get("fit", {}))
    noise = registry.make_dataclass(augment.Config, sizes.pop("augment", {}))
    made = {n: registry.make_dataclass(m, sections.get(n, {})) for n, m in makers.items()}
    recipe = Recipe(fit=registry.make_dataclass(fit.Config, {**sizes, "augment": noise}), **made)
    last, stop = recipe.fit.num_checkpoints, recipe.adapt.checkpoint
    if stop > last:
        raise ConfigError(f"adapt.checkpoint={stop}: there are fit.num_checkpoints={last}")
    return recipe


def most_loss(base: Any, tolerance: float) -> Any:
    """The validation loss, or losses, below which a copy is kept rather than the base."""
    return base + tolerance * abs(base)


def make_spec(
    base: Aligner, method: delta_lib.Method, config: fit.Config, dtype: Any = jnp.float32
) -> tuple[fit.Spec, dict[str, Any]]:
    """What `fit.run` compiles for, and the base's tree with the encoder where the method needs it."""
    params = {name: base.params[name] for name in ("projector", "objective")}
    if not method.needs_encoder:
        return fit.Spec(base.ear, method, config), params
    module, encoder_config = loading.encoder_config(base.encoder_folder)
    layers = tuple(base.card["encoder"]["layers"])
    params["encoder"] = base.encoder_params()
    return fit.Spec(base.ear, method, config, module.Encoder(encoder_config, dtype), layers), params
