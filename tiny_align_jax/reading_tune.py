"""Weights of every way to read with help, fitted on validation speakers; test speakers are never read.

Each candidate text carries what CTC, the n-gram model and the LLM say of it, so trying weights costs
an argmax and the whole grid takes a second. The cost is in the candidates: one beam search, one pass of
the LLM for every length of its context, and one search with the LLM inside.

A score on the utterances that weights were fitted on flatters them. So each row also has the score
'held_out': weights fitted on either half of the speakers, scored on the other.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tiny_align_jax import candidates, language, reading, reading_config
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.metrics import wer
from tiny_align_jax.types import ConfigError, Utterance


@dataclasses.dataclass(frozen=True)
class Config:
    """What to try.

    Attributes:
        methods: those to tune, of 'beam', 'rescore', 'fusion'.
        contexts: numbers of training sentences that the LLM sees before a text.
        num_best: candidates an utterance.
        llm_weights, ngram_weights, row_bonuses, consensus: the grid.
        normalizer: of the word errors that are counted.
        ngram_order, ngram_texts, members, seed: as in `reading_config.Config`, not searched.
    """

    methods: tuple[str, ...] = ("beam", "rescore", "fusion")
    contexts: tuple[int, ...] = (0, 8, 32)
    num_best: int = 32
    llm_weights: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(21))
    ngram_weights: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(11))
    row_bonuses: tuple[float, ...] = tuple(round(0.5 * i - 1, 1) for i in range(15))
    consensus: tuple[float, ...] = (0.0, 0.3, 0.6, 1.0)
    normalizer: str = "whisper_english"
    ngram_order: int = 3
    ngram_texts: str = ""
    members: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        unknown = set(self.methods) - {"beam", "rescore", "fusion"}
        if unknown or not self.methods:
            raise ConfigError(
                f"tune: methods={self.methods}; expected some of 'beam', 'rescore', 'fusion'"
            )
        if "fusion" in self.methods and "rescore" not in self.methods:
            raise ConfigError("tune: 'fusion' starts from the weights of 'rescore'; tune both")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to read after tuning.

    Attributes:
        config: with its fitted weights.
        wer: on all validation utterances, which the weights were fitted on.
        held_out: of weights fitted on one half of the speakers and scored on the other, both ways.
        best_of_n: of the best candidate, if somebody knew it.
        seconds: an utterance, once everything is compiled; the batch is the whole validation set.
    """

    config: reading_config.Config
    wer: float
    held_out: float
    best_of_n: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Table:
    """Candidates of all utterances as arrays [U, H]; missing ones have ctc minus infinity."""

    found: Sequence[Sequence[candidates.Candidate]]
    ctc: np.ndarray
    ngram: np.ndarray
    llm: np.ndarray
    rows: np.ndarray
    errors: np.ndarray
    num_words: int
    half_U: np.ndarray

    def pick(self, w: Mapping[str, float]) -> np.ndarray:
        """Index of every utterance's best candidate under weights."""
        judged = w["llm_weight"] * self.llm + w["ngram_weight"] * self.ngram
        return (self.ctc + judged + w["row_bonus"] * self.rows).argmax(1)

    def errors_U(self, w: Mapping[str, float]) -> np.ndarray:
        """Word errors of every utterance under weights."""
        return np.take_along_axis(self.errors, self.pick(w)[:, None], 1)[:, 0]


def tune(
    aligner: Aligner,
    frames: Sequence[np.ndarray],
    utterances: Sequence[Utterance],
    texts: Sequence[str],
    config: Config | None = None,
    members: Sequence[Aligner] = (),
    on_row: Callable[[Row], Any] | None = None,
) -> list[Row]:
    """Fits all methods; of several rows of a method, the one with the best `held_out` is to be kept.

    Args:
        aligner: with the LLM loaded, unless only 'beam' is tuned.
        frames: encoder frames of the validation utterances.
        utterances: their transcripts and speakers.
        texts: training transcripts.
        config: what to try.
        members: further projectors, the aligners of `config.members`.
        on_row: called with each row as it is there.
    """
    config = config or Config()
    rows: list[Row] = []

    def keep(row: Row) -> Row:
        rows.append(row)
        if on_row:
            on_row(row)
        return row

    start = _start(config)
    reader = reading.Reader(aligner, start, texts, members)
    found, seconds = _candidates(reader, frames)
    if "beam" in config.methods:
        keep(_fit(config, start, _table(config, found, utterances), seconds))
    if "rescore" not in config.methods:
        return rows
    tried = []
    for context in config.contexts:
        how = dataclasses.replace(start, method="rescore", context=context)
        judged, judge_s = _judge(aligner, how, found, texts)
        tried.append(keep(_fit(config, how, _table(config, judged, utterances), seconds + judge_s)))
    best = min(tried, key=lambda row: row.held_out)
    if "fusion" in config.methods:
        how = dataclasses.replace(
            best.config,
            method="fusion",
            consensus=0.0,
            search_ngram_weight=None,  # the LLM has a part in that beam
            search_row_bonus=None,
        )
        inside = reading.Reader(aligner, how, texts, members)
        fused, seconds = _candidates(inside, frames)
        keep(_fit(config, how, _table(config, fused, utterances), seconds))
    return rows


def corpus_wer(config: Config, utterances: Sequence[Utterance], texts: Sequence[str]) -> float:
    """Word error rate of texts under the normaliser of the tuning."""
    references = [u.text for u in utterances]
    return round(wer.compute(wer.Config(config.normalizer), references, texts)["wer"], 5)


def report(rows: Sequence[Row], greedy_wer: float, about: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of reading.json."""
    methods: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row.held_out):
        methods.setdefault(row.config.method, dataclasses.asdict(row.config))
    tried = [dataclasses.asdict(row) for row in rows]
    return {"methods": methods, "greedy_wer": greedy_wer, "tried": tried, **about}


def markdown(rows: Sequence[Row], greedy_wer: float) -> str:
    """Rows as a table."""
    lines = [
        "| reading | context | LLM | n-gram | bonus | consensus | WER | held out | best of n | s/utt |",
        "|" + " --- |" * 10,
        f"| greedy | | | | | | {greedy_wer:.3f} | {greedy_wer:.3f} | | |",
    ]
    return "\n".join([*lines, *(line(row) for row in rows)])


def line(row: Row) -> str:
    """One row of the table."""
    c = row.config
    llm = (f"{c.context}", f"{c.llm_weight:g}") if c.needs_llm else ("", "")
    cells = [c.method, *llm, f"{c.ngram_weight:g}", f"{c.row_bonus:g}", f"{c.consensus:g}"]
    cells += [f"{x:.3f}" for x in (row.wer, row.held_out, row.best_of_n, row.seconds)]
    return "| " + " | ".join(cells) + " |"


def _start(config: Config) -> reading_config.Config:
    """Where candidates for tuning come from: a wide beam with a little help."""
    weight, bonus = 0.2 if any(config.ngram_weights) else 0.0, 0.5
    return reading_config.Config(
        method="beam",
        num_best=config.num_best,
        ngram_weight=weight,
        row_bonus=bonus,
        search_ngram_weight=weight,  # who reads makes its texts as they were made for the fit
        search_row_bonus=bonus,
        ngram_order=config.ngram_order,
        ngram_texts=config.ngram_texts,
        members=config.members,
        seed=config.seed,
    )


def _candidates(
    reader: reading.Reader, frames: Sequence[np.ndarray]
) -> tuple[list[list[candidates.Candidate]], float]:
    """Candidates, and seconds an utterance of a second run over some, without compilation."""
    found = reader.candidates(frames)
    return found, reader.about(frames)["seconds_per_utterance"]


def _judge(
    aligner: Aligner,
    how: reading_config.Config,
    found: Sequence[Sequence[candidates.Candidate]],
    texts: Sequence[str],
) -> tuple[list[list[candidates.Candidate]], float]:
    """Candidates with the LLM's opinion under a context, and its seconds an utterance."""
    sentences = reading.draw_context(texts, how.context, how.seed)
    judge = language.LlmJudge(aligner.require_llm(), aligner.tokenizer, sentences)
    distinct = list(dict.fromkeys(c.text for cs in found for c in cs))
    said = dict(zip(distinct, judge.log_probs(distinct).tolist(), strict=True))
    drawn = list(dict.fromkeys(c.text for cs in found[:32] for c in cs))
    judge.log_probs(drawn)
    start_s = time.monotonic()
    judge.log_probs(drawn)
    seconds = (time.monotonic() - start_s) / len(found[:32])
    return [[dataclasses.replace(c, llm=said[c.text]) for c in cs] for cs in found], seconds


def _table(
    config: Config,
    found: Sequence[Sequence[candidates.Candidate]],
    utterances: Sequence[Utterance],
) -> _Table:
    shape = (len(found), max(len(cs) for cs in found))
    columns = {name: np.zeros(shape) for name in ("ngram", "llm", "rows", "errors")}
    ctc = np.full(shape, -np.inf)
    pairs = [(u.text, c.text) for u, cs in zip(utterances, found, strict=True) for c in cs]
    counts = wer.per_utterance(wer.Config(config.normalizer), *zip(*pairs, strict=True))
    errors = iter(counts["word_errors"])
    for u, cs in enumerate(found):
        for h, c in enumerate(cs):
            ctc[u, h] = c.ctc
            values = {"ngram": c.ngram, "llm": c.llm, "rows": c.num_rows, "errors": next(errors)}
            for name, value in values.items():
                columns[name][u, h] = value
    columns["errors"][np.isinf(ctc)] = np.inf
    speakers = sorted({u.speaker_id for u in utterances})
    half_U = np.array([speakers.index(u.speaker_id) % 2 == 0 for u in utterances])
    references = [u.text for u in utterances]
    words = wer.per_utterance(wer.Config(config.normalizer), references, references)
    num_words = int(words["reference_words"].sum())
    return _Table(found, ctc, num_words=num_words, half_U=half_U, **columns)


def _fit(config: Config, how: reading_config.Config, table: _Table, seconds: float) -> Row:
    """Weights with the fewest errors, then the best way to choose with them."""
    everyone = np.ones_like(table.half_U)
    axes = (config.llm_weights if how.needs_llm else (0.0,), config.ngram_weights)
    axes = (*axes, config.row_bonuses)
    grid: list[dict[str, float]] = [
        {"llm_weight": llm, "ngram_weight": ngram, "row_bonus": bonus}
        for llm, ngram, bonus in itertools.product(*axes)
    ]
    errors_GU = np.stack([table.errors_U(w) for w in grid])

    def best(members_U: np.ndarray) -> int:
        errors_G = errors_GU[:, members_U].sum(1)
        return int(_smooth(errors_G.reshape([len(a) for a in axes])).argmin())

    sides = (table.half_U, ~table.half_U)
    crossed = sum(
        errors_GU[best(fit if fit.any() else everyone)][score].sum()
        for fit, score in (sides, sides[::-1])
    )
    fitted = dataclasses.replace(how, **grid[best(everyone)])
    fitted, total = _with_consensus(config, fitted, table, errors_GU[best(everyone)].sum())
    return Row(
        config=fitted,
        wer=round(float(total) / table.num_words, 5),
        held_out=round(float(crossed) / table.num_words, 5),
        best_of_n=round(float(table.errors.min(1).sum()) / table.num_words, 5),
        seconds=round(seconds, 5),
    )


def _smooth(errors: np.ndarray) -> np.ndarray:
    """Mean over neighbours in the grid: a lucky point in a bad place is not chosen."""
    for axis in range(errors.ndim):
        padding = [(int(a == axis), int(a == axis)) for a in range(errors.ndim)]
        padded = np.pad(errors, padding, mode="edge")
        errors = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=axis).mean(-1)
    return errors


def _with_consensus(
    config: Config, how: reading_config.Config, table: _Table, errors: float
) -> tuple[reading_config.Config, float]:
    """The same weights with the consensus that has the fewest errors; none unless it saves some."""
    tried = [(errors, how)]
    for value in config.consensus:
        if value:
            trial = dataclasses.replace(how, consensus=value)
            tried.append((_consensus_errors(trial, table), trial))
    errors, how = min(tried, key=lambda pair: pair[0])
    return how, errors


def _consensus_errors(how: reading_config.Config, table: _Table) -> float:
    total = 0.0
    for errors_H, cs in zip(table.errors, table.found, strict=True):
        text = candidates.choose(candidates.ranked(cs, how), how)
        total += errors_H[[c.text for c in cs].index(text)]
    return total
