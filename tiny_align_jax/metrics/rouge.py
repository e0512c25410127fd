"""ROUGE-1, ROUGE-2 and ROUGE-L f-measures, averaged over utterances."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer

from tiny_align_jax.metrics import _normalizers

NAMES = ("rouge1", "rouge2", "rougeL")
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes: normalizer: name in `_normalizers.NORMALIZERS`, applied on both sides."""

    normalizer: str = "whisper_english"


class _WordTokenizer(Tokenizer):
    """Runs of letters and digits of any script; rouge_score's own drops all but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def per_utterance(
    config: Config, references: Sequence[str], hypotheses: Sequence[str]
) -> dict[str, np.ndarray]:
    """F-measures of every utterance and a count of one each, float64 [num_utterances].

    As `rouge_score` gives them, but two empty texts agree and score 1 (there: 0), which would punish
    a system for staying silent where nothing was said.

    Raises:
        ConfigError: lists of different lengths or an unknown normaliser.
    """
    references, hypotheses = _normalizers.normalize_pair(config.normalizer, references, hypotheses)
    tokenizer = _WordTokenizer()
    scorer = rouge_scorer.RougeScorer(list(NAMES), use_stemmer=False, tokenizer=tokenizer)
    rows = [_row(scorer, tokenizer, r, h) for r, h in zip(references, hypotheses, strict=True)]
    table = np.array(rows, np.float64).reshape(-1, len(NAMES))
    return {**dict(zip(NAMES, table.T, strict=True)), "utterances": np.ones(len(rows))}


def from_totals(totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means from sums of `per_utterance` values; works on any shape."""
    return {name: totals[name] / np.maximum(totals["utterances"], 1) for name in NAMES}


def compute(
    config: Config, references: Sequence[str], hypotheses: Sequence[str]
) -> dict[str, float]:
    """Mean f-measures over the utterances (1 is perfect)."""
    values = per_utterance(config, references, hypotheses)
    means = from_totals({key: column.sum() for key, column in values.items()})
    return {key: float(value) for key, value in means.items()}


def _row(
    scorer: rouge_scorer.RougeScorer, tokenizer: _WordTokenizer, reference: str, hypothesis: str
) -> tuple[float, ...]:
    if not tokenizer.tokenize(reference) and not tokenizer.tokenize(hypothesis):
        return (1.0,) * len(NAMES)
    scores = scorer.score(reference, hypothesis)
    return tuple(scores[name].fmeasure for name in NAMES)
