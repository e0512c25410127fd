"""A user's word prior: a bias on table rows from the few sentences that the user has said.

Fourteen sentences hold about ninety words: too few to count, enough to tell what the user talks about.
So the prior is a mixture: every training speaker's text is one topic, and the weights of the topics
are fitted to the user's sentences (expectation maximisation, with a Dirichlet prior that
keeps them near even). Words of the user's own list are counted on top.

Source: mixture adaptation of language models (Kneser and Steinbiss 1993); subtracting the prior that the
training text had is the hybrid model's division by class priors (Bourlard and Morgan 1994).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tiny_align_jax import checks


@dataclasses.dataclass(frozen=True)
class Config:
    """Strength of the prior.

    Attributes:
        weight: factor on log(user's prior / training's prior); 0 turns it off.
        smoothing: counts of the whole training text mixed into every topic.
        concentration: pseudo-counts that hold the topics' weights near even.
        background: share of the whole training text among the topics before fitting.
        cache: the user's own words against this many counts of the mixture; 0 leaves them out.
        list_boost: added to the rows of the user's word list.
    """

    weight: float = 0.5
    smoothing: float = 20.0
    concentration: float = 20.0
    background: float = 0.5
    cache: float = 0.0
    list_boost: float = 1.0

    def __post_init__(self):
        problems = checks.below(self, 0, "weight", "smoothing", "concentration", "cache")
        if not 0 < self.background < 1:
            problems.append(f"background={self.background}; expected 0 < x < 1")
        checks.refuse("word_prior", problems)


def topic_counts(texts_by_speaker: Sequence[Sequence[np.ndarray]], num_rows: int) -> np.ndarray:
    """How often each training speaker says each row, float32 [speakers, rows].

    Args:
        texts_by_speaker: rows of every utterance of every speaker.
        num_rows: rows of the table.
    """
    counts = np.zeros((len(texts_by_speaker), num_rows), np.float32)
    for row, texts in zip(counts, texts_by_speaker, strict=True):
        for text in texts:
            np.add.at(row, text, 1)
    return counts


def row_bias(
    config: Config,
    topics_KV: np.ndarray,
    own: Sequence[np.ndarray],
    listed: Sequence[int] = (),
) -> np.ndarray:
    """The bias on every row's logit, float32 [V].

    Args:
        config: strength.
        topics_KV: from `topic_counts`; no rows where no training text is at hand.
        own: rows of the user's sentences.
        listed: rows of the user's word list.
    """
    num_rows = topics_KV.shape[1]
    if not config.weight:  # 4 ms of a mixture that nothing is made of, a job of hundreds
        return _listed(config, np.zeros(num_rows, np.float32), listed)
    everyone = topics_KV.sum(0) + 0.5
    everyone /= everyone.sum()
    said = np.concatenate([np.asarray(t, int) for t in own]) if len(own) else np.zeros(0, int)
    mixture = _mixture(config, topics_KV, everyone, said)
    if config.cache and len(said):
        counts = np.bincount(said, minlength=num_rows)
        mixture = (config.cache * mixture + counts) / (config.cache + counts.sum())
    bias = config.weight * (np.log(mixture) - np.log(everyone))
    return _listed(config, bias, listed)


def _listed(config: Config, bias_V: np.ndarray, listed: Sequence[int]) -> np.ndarray:
    bias_V[np.asarray(listed, int)] += config.list_boost
    return bias_V.astype(np.float32)


def _mixture(config: Config, topics_KV, everyone_V, said: np.ndarray) -> np.ndarray:
    """The topics mixed as the user's words weigh them, [V]."""
    totals = topics_KV.sum(1, keepdims=True)
    smooth = (topics_KV + config.smoothing * everyone_V) / (totals + config.smoothing)
    parts = np.concatenate([everyone_V[None], smooth])
    share = (1 - config.background) / max(len(topics_KV), 1)
    start = np.r_[config.background, np.full(len(topics_KV), share)]
    weights = start / start.sum()
    for _ in range(10):
        posterior = weights[:, None] * parts[:, said]
        posterior /= np.maximum(posterior.sum(0), 1e-30)
        weights = posterior.sum(1) + config.concentration * start
        weights /= weights.sum()
    return weights @ parts
