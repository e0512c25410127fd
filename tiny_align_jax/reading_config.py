"""How to read what a projector heard: methods, weights, and the workdir's reading.json.

    greedy    the best row at every audio token (`Aligner.hear`); no reader is needed.
    beam      prefix beam search with the n-gram model; no LLM.
    rescore   the same, then the LLM judges the best whole texts.
    fusion    the LLM has its say while the prefixes grow, then judges the best whole texts.

A text's score is CTC's log-probability + llm_weight x the LLM's + ngram_weight x the n-gram model's +
row_bonus x its rows. Weights are tuned on validation speakers (`reading_tune`) and kept in the workdir's
reading.json.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from tiny_align_jax import checks, registry
from tiny_align_jax.types import ConfigError

METHODS = ("greedy", "beam", "rescore", "fusion")
FILE = "reading.json"
TEXT_FILES = ("ngram_texts", "transcripts")  # their names may be relative to reading.json's folder


@dataclasses.dataclass(frozen=True)
class Config:
    """How to read; the defaults are a start for tuning, not a result.

    Attributes:
        method: one of METHODS.
        width, top_rows, margin: of the beam, see `beam.Config`.
        num_best: texts that are judged as a whole.
        llm_weight, ngram_weight, row_bonus: of the score.
        search_ngram_weight, search_row_bonus: of the beam that makes the texts to be judged; None for those
            of the score. They belong apart: a bonus that balances the LLM's judgement of a text fills
            a beam that the LLM has no part in with texts that are too long.
        ngram_order: longest n-gram.
        ngram_texts: further sentences for the n-gram model, a file of one a line; never test text.
        transcripts: training transcripts, a file of one a line; '' takes them from the corpus.
        context: training sentences that the LLM sees before a text.
        seed: of the draw of those sentences.
        consensus: 0 takes the best text; above, the text with the fewest expected word errors against
            all others, whose probabilities are their scores times this (minimum Bayes risk).
        members: workdirs of further projectors, whose probabilities are averaged with the aligner's.
    """

    method: str = "rescore"
    width: int = 16
    top_rows: int = 24
    margin: float = 8.0
    num_best: int = 16
    llm_weight: float = 0.4
    ngram_weight: float = 0.2
    row_bonus: float = 1.0
    search_ngram_weight: float | None = None
    search_row_bonus: float | None = None
    ngram_order: int = 3
    ngram_texts: str = ""
    transcripts: str = ""
    context: int = 24
    seed: int = 0
    consensus: float = 0.0
    members: tuple[str, ...] = ()

    def __post_init__(self):
        weights = ("llm_weight", "ngram_weight", "consensus", "context")
        problems = [*checks.below(self, 0, *weights), *checks.below(self, 1, "num_best")]
        checks.refuse("reading", [*checks.unlisted(self, method=METHODS), *problems])

    @property
    def beam_ngram_weight(self) -> float:
        """Weight of the n-grams in the beam."""
        given = self.search_ngram_weight
        return self.ngram_weight if given is None else given

    @property
    def beam_row_bonus(self) -> float:
        """Bonus a row in the beam."""
        given = self.search_row_bonus
        return self.row_bonus if given is None else given

    @property
    def needs_ngram(self) -> bool:
        """Whether n-grams must be counted."""
        return bool(self.ngram_weight or self.beam_ngram_weight)

    @property
    def needs_llm(self) -> bool:
        """Whether the LLM must be loaded."""
        return self.method in ("rescore", "fusion")


def load_config(
    workdir: str | os.PathLike, method: str, file: str | os.PathLike | None = None
) -> Config:
    """Tuned settings of a method; the defaults, with a warning, if there are none.

    Args:
        workdir: its reading.json is read.
        method: one of METHODS.
        file: read instead of the workdir's, if given.

    Raises:
        ConfigError: unknown method, or a file that is damaged or has unknown keys.
    """
    path = Path(file) if file else Path(workdir) / FILE
    saved: Mapping[str, Any] = {}
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))["methods"].get(method, {})
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}); run experiments.tune_reading"
            ) from error
    if not saved and method != "greedy":
        logging.warning(
            "%s has no tuned weights for %r, the defaults are used; run experiments.tune_reading",
            path,
            method,
        )
    beside = {
        key: str(path.parent / saved[key])
        for key in TEXT_FILES
        if saved.get(key) and (path.parent / saved[key]).is_file()
    }
    return registry.make_config(sys.modules[__name__], {**saved, **beside, "method": method})
