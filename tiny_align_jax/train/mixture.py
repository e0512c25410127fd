"""Training data besides the corpus that is scored: distorted copies of it, and a second corpus.

The splits stay those of the main corpus: a second corpus only adds to what is trained on, and loses every
sentence that validation or test has.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tiny_align_jax import registry
from tiny_align_jax.data import distortion, splits
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.types import ConfigError, DataError, Utterance

PREFIX = "mixture:"  # of the second corpus's utterance and speaker ids


@dataclasses.dataclass(frozen=True)
class Config:
    """How much of a second corpus is trained on; its `dataset` stands beside in the same section.

    Attributes:
        share: of the utterances drawn in training; 0 leaves it out, 1 leaves the main corpus out.
        limit: keep only so many utterances of it, drawn by `seed`; 0 keeps all.
        variants: distortions, each of which adds a copy of every utterance of it.
        seed: of the draw.
    """

    share: float = 0.0
    limit: int = 0
    variants: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.share <= 1 or self.limit < 0:
            raise ConfigError(
                f"mixture.share={self.share}, mixture.limit={self.limit}; expected a share from 0 to 1 "
                "and a limit of 0 (all) or more"
            )
        for text in self.variants:
            distortion.check(text)


def extend(
    split: splits.Split,
    config: Config,
    dataset: Mapping[str, Any],
    variants: Sequence[str] = (),
) -> splits.Split:
    """A split with a second corpus and distorted copies among its training utterances.

    Args:
        split: of the main corpus.
        config: how much of the second corpus.
        dataset: section of the second corpus, read only if it has a share; its split 'train' is taken.
        variants: distortions, each of which adds a copy of every training utterance of the main corpus.

    Raises:
        ConfigError: values that cannot be.
        DataError: a second corpus that cannot be read, or that has no sentence of its own.
    """
    train = with_variants(split.train, variants)
    if not config.share:
        return dataclasses.replace(split, train=train)
    module, module_config = registry.from_section("datasets", dataset)
    more, dropped = _without_held_out(module.read(module_config, "train"), split)
    if not more:
        raise DataError(
            f"mixture: all {len(dropped)} training sentences of {dataset['name']!r} are in validation "
            "or test"
        )
    order = np.random.default_rng(config.seed).permutation(len(more))
    more = [more[i] for i in sorted(order[: config.limit or None])]
    logging.info("mixture: %d utterances, %d left out (held-out sentence)", len(more), len(dropped))
    more = with_variants(more, config.variants)
    return dataclasses.replace(
        split,
        train=more if config.share == 1 else (*train, *more),
        dropped=(*split.dropped, *dropped),
    )


def with_variants(
    utterances: Sequence[Utterance], variants: Sequence[str]
) -> tuple[Utterance, ...]:
    """The utterances, and behind them a distorted copy of each for each variant.

    Raises:
        ConfigError: an unknown distortion, or one named twice.
    """
    if len(set(variants)) < len(variants) or "" in variants:
        raise ConfigError(f"variants={tuple(variants)}; expected different distortions")
    for text in variants:
        distortion.check(text)
    copies = [
        dataclasses.replace(
            u,
            utterance_id=f"{u.utterance_id}+{text}",
            distortion="+".join(filter(None, (u.distortion, text))),
        )
        for text in variants
        for u in utterances
    ]
    return (*utterances, *copies)


def corpora(ids: Sequence[str], config: Config) -> tuple[tuple[np.ndarray, float], ...]:
    """Which of the training utterances are whose, and how often each corpus is drawn; () for one corpus."""
    if not 0 < config.share < 1:
        return ()
    is_second = np.array([i.startswith(PREFIX) for i in ids])
    parts = (
        (np.flatnonzero(~is_second), 1 - config.share),
        (np.flatnonzero(is_second), config.share),
    )
    if not all(len(members) for members, _ in parts):
        raise DataError(
            f"mixture.share={config.share}, but one of the two corpora has no usable training utterance"
        )
    return parts


def _without_held_out(
    utterances: Sequence[Utterance], split: splits.Split
) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances of the second corpus under ids of their own: those kept, and those left out."""
    held_out = {spoken_form(u.text) for u in (*split.validation, *split.test)}
    kept, dropped = [], []
    for u in utterances:
        ours = dataclasses.replace(
            u, utterance_id=PREFIX + u.utterance_id, speaker_id=PREFIX + u.speaker_id
        )
        (dropped if spoken_form(u.text) in held_out else kept).append(ours)
    return kept, dropped
