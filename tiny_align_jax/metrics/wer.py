"""Word and character error rates of a corpus: all errors over all reference units.

An utterance with an empty reference counts its inserted words as errors, adds nothing to the
denominator, and never divides by zero: a corpus without any reference word divides by one.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jiwer
import numpy as np

from tiny_align_jax.metrics import _normalizers

NAMES = ("wer", "cer")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes: normalizer: name in `_normalizers.NORMALIZERS`, applied on both sides."""

    normalizer: str = "whisper_english"


def per_utterance(
    config: Config, references: Sequence[str], hypotheses: Sequence[str]
) -> dict[str, np.ndarray]:
    """Error and length counts of every utterance, float64 [num_utterances] each.

    CER counts the spaces between words, as jiwer does.

    Raises:
        ConfigError: lists of different lengths or an unknown normaliser.
    """
    references, hypotheses = _normalizers.normalize_pair(config.normalizer, references, hypotheses)
    pairs = list(zip(references, hypotheses, strict=True))
    words = [_counts(jiwer.process_words(r, h)) for r, h in pairs]
    chars = [_counts(jiwer.process_characters(r, h)) for r, h in pairs]
    counts = np.array([w + c for w, c in zip(words, chars, strict=True)], np.float64).reshape(-1, 4)
    keys = ("word_errors", "reference_words", "char_errors", "reference_chars")
    return {key: counts[:, i] for i, key in enumerate(keys)}


def from_totals(totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rates from sums of `per_utterance` counts; works on any shape, so on bootstrap replicates."""
    return {
        "wer": totals["word_errors"] / np.maximum(totals["reference_words"], 1),
        "cer": totals["char_errors"] / np.maximum(totals["reference_chars"], 1),
    }


def compute(
    config: Config, references: Sequence[str], hypotheses: Sequence[str]
) -> dict[str, float]:
    """Corpus WER and CER (0 is perfect; insertions can push them above 1)."""
    counts = per_utterance(config, references, hypotheses)
    rates = from_totals({key: values.sum() for key, values in counts.items()})
    return {key: float(value) for key, value in rates.items()}


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int]:
    missed = output.substitutions + output.deletions
    return missed + output.insertions, missed + output.hits
