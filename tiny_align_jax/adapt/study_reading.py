"""Reading with the LLM's help for many users: n-best texts, judged behind each user's own sentences.

What a user has said before tells what the user will say: the sentences learnt from stand before the text
that is judged, as the last lines of the list that the LLM goes on with. Judged behind somebody
else's sentences the same texts are the control, behind training sentences alone they are what
everybody gets.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from multiprocessing import get_context

import numpy as np

from tiny_align_jax import beam, language, ngram
from tiny_align_jax.adapt import crew as crew_lib
from tiny_align_jax.adapt import fit, study_scores

_CONTEXT_TOKENS = 192  # of about 25 lines; equal for all, so that all share programs
_LLM_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5)
_BONUSES = (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
_JUDGED_AT_ONCE = 128
# While lists are made: what `tune_reading` found for beam searches with 3-grams; judged anew afterwards.
_SEARCH_NGRAM, _SEARCH_BONUS = 0.6, 2.0
_NGRAM_WEIGHTS = (0.0, 0.2, 0.4, 0.6)


@dataclasses.dataclass(frozen=True)
class Best:
    """The likeliest texts of one utterance.

    Attributes:
        texts: by CTC, best first.
        ctc: log-probability of each.
        num_rows: table rows of each.
        ngram: n-gram log-probability of each; zeros without n-grams.
        errors: word errors of each.
    """

    texts: tuple[str, ...]
    ctc: np.ndarray
    num_rows: np.ndarray
    ngram: np.ndarray
    errors: np.ndarray


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a text's score is made of: CTC + llm x the LLM's log-probability + ngram x the n-grams' + bonus x rows."""

    llm: float
    bonus: float
    ngram: float = 0.0


def n_best(
    crew: crew_lib.Crew,
    plan: crew_lib.Plan,
    heard: fit.Heard,
    count: int,
    grams: ngram.Ngram | None = None,
) -> list[list[Best]]:
    """A beam search over every test utterance, on all cores, n-grams steer it; `[job][utterance]`."""
    config = beam.Config(
        width=max(16, count),
        top_rows=fit.TOP_ROWS,
        margin=8.0,
        row_bonus=_SEARCH_BONUS if grams else 0.0,
    )
    emissions = [
        beam.Emissions(
            np.asarray(heard.top_rows_JSAK[j, s, :n], np.int32),  # type: ignore[index]
            np.asarray(heard.top_log_probs_JSAK[j, s, :n]),  # type: ignore[index]
            np.asarray(heard.blank_JSA[j, s, :n]),  # type: ignore[index]
        )
        for j in range(len(plan))
        for s in range(plan.num_test)
        for n in (int(heard.num_tokens_JS[j, s]),)
    ]
    found = iter(_search(emissions, config, grams))
    return [
        [_best(crew, u.text, next(found), count) for u in crew_lib.tested(crew, plan, j)]
        for j in range(len(plan))
    ]


def _search(emissions: Sequence[beam.Emissions], config: beam.Config, grams: ngram.Ngram | None):
    workers = min(16, os.cpu_count() or 1)
    size = -(-len(emissions) // (4 * workers))
    parts = [emissions[i : i + size] for i in range(0, len(emissions), size)]
    if workers <= 2:
        return [h for part in parts for h in _search_part(part, config, grams)]
    done = _workers(workers, grams).map(_search_with_own, parts, [config] * len(parts))
    return [h for part in done for h in part]


def _search_part(part: Sequence[beam.Emissions], config: beam.Config, grams: ngram.Ngram | None):
    opinions = [(_SEARCH_NGRAM, language.ngram_score(grams))] if grams else []
    return beam.search(part, config, language.mix(opinions))


_own_grams: ngram.Ngram | None = None  # of a worker process


@functools.lru_cache(maxsize=2)
def _workers(count: int, grams: ngram.Ngram | None) -> futures.ProcessPoolExecutor:
    """Spawned, not forked: a copy of a process that holds an accelerator hangs. They stay: each takes seconds to start."""
    return futures.ProcessPoolExecutor(count, get_context("spawn"), _keep_grams, (grams,))


def _keep_grams(grams: ngram.Ngram | None) -> None:
    global _own_grams
    _own_grams = grams


def _search_with_own(part: Sequence[beam.Emissions], config: beam.Config):
    return _search_part(part, config, _own_grams)


def _best(crew, reference: str, hypotheses: Sequence[beam.Hypothesis], count: int) -> Best:
    totals: dict[str, float] = {}
    first: dict[str, beam.Hypothesis] = {}
    for h in hypotheses:
        text = crew.base.vocabulary.decode(h.rows)
        if text in totals:
            totals[text] = float(np.logaddexp(totals[text], h.log_prob))
        elif len(totals) < count:
            totals[text], first[text] = h.log_prob, h
    texts = tuple(totals)
    return Best(
        texts,
        np.array([totals[t] for t in texts]),
        np.array([len(first[t].rows) for t in texts]),
        np.array([first[t].language / _SEARCH_NGRAM for t in texts]),
        np.array([study_scores.word_errors(reference, t) for t in texts]),
    )


def judge(
    crew: crew_lib.Crew,
    plan: crew_lib.Plan,
    systems: Mapping[str, list[list[Best]]],
    sentences_of: Callable[[int], Sequence[str]],
) -> dict[str, list[list[np.ndarray]]]:
    """The LLM's log-probability of every text of every system, behind a context a job.

    Args:
        crew: users; the base holds the LLM.
        plan: jobs; those of one user and fold share a context and are judged once.
        systems: n-best lists by system.
        sentences_of: job -> lines before the text, the nearest last.
    """
    known: dict[tuple[str, ...], dict[str, float]] = {}
    wanted: dict[tuple[str, ...], set[str]] = {}
    contexts = [tuple(sentences_of(j)) for j in range(len(plan))]
    for best in systems.values():
        for j, context in enumerate(contexts):
            wanted.setdefault(context, set()).update(t for b in best[j] for t in b.texts)
    llm, words = crew.base.require_llm(), crew.base.tokenizer
    for context, texts in wanted.items():
        listed = sorted(texts)
        judged = language.LlmJudge(
            llm, words, context, (_JUDGED_AT_ONCE,), _CONTEXT_TOKENS
        ).log_probs(listed)
        known[context] = dict(zip(listed, judged.tolist(), strict=True))
    return {
        name: [
            [np.array([known[contexts[j]][t] for t in b.texts]) for b in best[j]]
            for j in range(len(plan))
        ]
        for name, best in systems.items()
    }


def errors_at(
    best: Sequence[Sequence[Best]], said: Sequence[Sequence[np.ndarray]], weights: Weights
) -> np.ndarray:
    """Word errors of the texts that the weights choose, [J, tests]."""
    w = weights
    return np.array(
        [
            [
                b.errors[np.argmax(b.ctc + w.llm * s + w.ngram * b.ngram + w.bonus * b.num_rows)]
                for b, s in zip(bests, scores, strict=True)
            ]
            for bests, scores in zip(best, said, strict=True)
        ]
    )


def tune(best: Sequence[Sequence[Best]], said: Sequence[Sequence[np.ndarray]]) -> Weights:
    """The weights with the fewest word errors; on simulated users only."""
    has_grams = any(b.ngram.any() for bests in best for b in bests)
    grid = [
        Weights(w, b, n)
        for w in _LLM_WEIGHTS
        for b in _BONUSES
        for n in (_NGRAM_WEIGHTS if has_grams else (0.0,))
    ]
    return min(grid, key=lambda weights: errors_at(best, said, weights).sum())


def oracle(best: Sequence[Sequence[Best]]) -> np.ndarray:
    """Word errors of the best text of each list, [J, tests]: what no judge can pass."""
    return np.array([[b.errors.min() for b in bests] for bests in best])
