"""CTC prefix beam search: the likeliest texts of an utterance, each summed over its alignments.

Greedy reading takes the best symbol at every audio token; this keeps the best `width` prefixes and adds
up all alignments that spell the same one. A language model may have its say while the prefixes grow
(shallow fusion): it is asked only about prefixes that are alive where something new may be read, and
the questions of many utterances are put together, because a language model answers batches.

Only the likeliest rows of each audio token are looked at. A pruned row counts as impossible, so a
log-probability found here is a lower bound (exact without pruning; tested against enumeration).

Source: Graves and Jaitly, ICML 2014, and Hannun et al. 2014 (arXiv 1408.2873).
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from tiny_align_jax import checks

Rows = tuple[int, ...]
_LOG_ZERO = -1e30  # finite: differences of two impossible scores stay finite


@dataclasses.dataclass(frozen=True)
class Config:
    """How wide to search.

    Attributes:
        width: prefixes kept after every audio token.
        top_rows: rows looked at per audio token.
        min_log_prob: rows less likely than this are not looked at.
        margin: prefixes whose score is this far below the best are dropped.
        row_bonus: added to a score for every row read: a language model prefers short texts.
    """

    width: int = 16
    top_rows: int = 24
    min_log_prob: float = -7.0
    margin: float = 8.0
    row_bonus: float = 0.0

    def __post_init__(self):
        problems = checks.below(self, 1, "width", "top_rows")
        if self.min_log_prob > 0:
            problems.append(f"min_log_prob={self.min_log_prob}; expected 0 or less")
        if self.margin <= 0:
            problems.append(f"margin={self.margin}; expected above 0")
        checks.refuse("beam", problems)


@dataclasses.dataclass(frozen=True)
class Emissions:
    """What CTC says about one utterance, pruned.

    Attributes:
        rows_AK: the K likeliest rows at each audio token, likeliest first.
        log_probs_AK: their log-probabilities.
        blank_A: log-probability of the blank.
    """

    rows_AK: np.ndarray
    log_probs_AK: np.ndarray
    blank_A: np.ndarray


@dataclasses.dataclass(frozen=True)
class Language:
    """What a language model says about one prefix.

    Attributes:
        log_prob: of the prefix itself; may differ from what `next_V` said before its last row was read,
            where a tokenizer would have cut the longer text otherwise.
        next_V: log-probability of every row to come next.
        end: log-probability of the text ending here.
    """

    log_prob: float
    next_V: np.ndarray
    end: float


Score = Callable[[Sequence[Rows]], Sequence[Language]]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A text that may have been said.

    Attributes:
        rows: table rows, in order.
        log_prob: CTC's, summed over alignments.
        language: the language model's (with the end), 0 without one.
        score: what it was ranked by: both, and the bonus.
    """

    rows: Rows
    log_prob: float
    language: float
    score: float


@dataclasses.dataclass
class _Node:
    """A prefix that was met; `known` once the language model has been asked."""

    rows: Rows
    parent: int
    language: float = 0.0
    known: Language | None = None


def search(
    utterances: Sequence[Emissions],
    config: Config | None = None,
    score: Score | None = None,
    *,
    together: int = 64,
    on_done: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """Hypotheses of every utterance, best first; at least one each, the empty one if need be.

    Args:
        utterances: pruned log-probabilities.
        config: how wide to search.
        score: (prefixes) -> what the language model says about each, already weighted; None without.
        together: utterances that walk in step, so that their questions make one batch.
        on_done: called with the number of utterances finished since the last call.
    """
    config = config or Config()
    found: list[list[Hypothesis]] = []
    for start in range(0, len(utterances), together):
        walks = [_walk(e, config, score is not None) for e in utterances[start : start + together]]
        found += list(_in_step(walks, score))
        if on_done:
            on_done(len(walks))
    return found


_Walk = Generator[list[Rows], Sequence[Language], list[Hypothesis]]


def _in_step(walks: Sequence[_Walk], score: Score | None) -> Iterator[list[Hypothesis]]:
    """Runs walks to their ends; all questions that are open at a time are asked at once."""
    results: dict[int, list[Hypothesis]] = {}
    answers: dict[int, Sequence[Language] | None] = dict.fromkeys(range(len(walks)))
    while answers:
        questions: dict[int, list[Rows]] = {}
        for i, answer in answers.items():
            try:
                questions[i] = walks[i].send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                results[i] = end.value
        # Many utterances begin alike: each prefix is asked about once.
        distinct = list(dict.fromkeys(p for asked in questions.values() for p in asked))
        known = dict(zip(distinct, score(distinct), strict=True)) if score and distinct else {}
        answers = {i: [known[p] for p in asked] for i, asked in questions.items()}
    yield from (results[i] for i in range(len(walks)))


def _walk(emissions: Emissions, config: Config, fused: bool) -> _Walk:
    """One utterance from left to right; yields prefixes to be scored, is sent what was said of them.

    `blank_W` and `label_W` are log-probabilities of the alignments of each kept prefix that end in a
    blank and in its last row.
    """
    nodes, children = [_Node((), -1)], {}
    beam_W, last_W = np.zeros(1, int), np.full(1, -1)
    blank_W, label_W = np.zeros(1), np.full(1, _LOG_ZERO)
    rows_AK = emissions.rows_AK[:, : config.top_rows]
    log_probs_AK = emissions.log_probs_AK[:, : config.top_rows].astype(np.float64)
    num_read_A = (log_probs_AK >= config.min_log_prob).sum(1)
    for rows_K, emit_K, blank, num_read in zip(
        rows_AK, log_probs_AK, emissions.blank_A.astype(np.float64), num_read_A, strict=True
    ):
        rows_K, emit_K = rows_K[:num_read], emit_K[:num_read]
        total_W = np.logaddexp(blank_W, label_W)
        same_WK = last_W[:, None] == rows_K[None]
        stay_label_W = label_W + np.where(same_WK, emit_K, _LOG_ZERO).max(1, initial=_LOG_ZERO)
        stay_blank_W = total_W + blank
        if not num_read:
            blank_W, label_W = stay_blank_W, stay_label_W
            continue
        if fused:
            yield from _ask(nodes, beam_W)
        grow_WK = np.where(same_WK, blank_W[:, None], total_W[:, None]) + emit_K
        _merge(nodes, beam_W, last_W, rows_K, grow_WK, stay_label_W)
        prior_W = np.array(
            [nodes[n].language + config.row_bonus * len(nodes[n].rows) for n in beam_W]
        )
        prior_WK = prior_W[:, None] + config.row_bonus + _expected(nodes, beam_W, rows_K)
        scores = np.concatenate(
            [np.logaddexp(stay_blank_W, stay_label_W) + prior_W, (grow_WK + prior_WK).ravel()]
        )
        kept = _best(scores, config)
        stays, grows = kept[kept < len(beam_W)], kept[kept >= len(beam_W)] - len(beam_W)
        parent_G, row_G = grows // num_read, grows % num_read
        born = [
            _child(nodes, children, int(beam_W[w]), int(rows_K[k]))
            for w, k in zip(parent_G, row_G, strict=True)
        ]
        beam_W = np.concatenate([beam_W[stays], np.array(born, int)])
        last_W = np.concatenate([last_W[stays], rows_K[row_G]])
        blank_W = np.concatenate([stay_blank_W[stays], np.full(len(born), _LOG_ZERO)])
        label_W = np.concatenate([stay_label_W[stays], grow_WK.ravel()[grows]])
    if fused:
        yield from _ask(nodes, beam_W)
    return _ranked(nodes, beam_W, np.logaddexp(blank_W, label_W), config)


def _ask(nodes: list[_Node], beam_W: np.ndarray) -> Generator[list[Rows], Sequence[Language], None]:
    """Has the language model asked about the kept prefixes that it has not seen."""
    asked = [nodes[n] for n in beam_W if nodes[n].known is None]
    if asked:
        answers = yield [node.rows for node in asked]
        for node, answer in zip(asked, answers, strict=True):
            node.known, node.language = answer, answer.log_prob


def _merge(
    nodes: list[_Node],
    beam_W: np.ndarray,
    last_W: np.ndarray,
    rows_K: np.ndarray,
    grow_WK: np.ndarray,
    stay_label_W: np.ndarray,
) -> None:
    """Moves what grows into a prefix that is kept already to that prefix, in place."""
    place = {int(node): w for w, node in enumerate(beam_W)}
    for w, node in enumerate(beam_W):
        parent = place.get(nodes[node].parent)
        for k in np.flatnonzero(rows_K == last_W[w]) if parent is not None else ():
            stay_label_W[w] = np.logaddexp(stay_label_W[w], grow_WK[parent, k])
            grow_WK[parent, k] = _LOG_ZERO


def _expected(nodes: list[_Node], beam_W: np.ndarray, rows_K: np.ndarray) -> np.ndarray | float:
    """The language model's log-probability of each row after each kept prefix; 0 without one."""
    known = [nodes[n].known for n in beam_W]
    return 0.0 if known[0] is None else np.stack([k.next_V[rows_K] for k in known if k])


def _best(scores: np.ndarray, config: Config) -> np.ndarray:
    """Indices of the scores that stay in the beam, in no order."""
    floor = max(scores.max() - config.margin, 0.5 * _LOG_ZERO)
    if len(scores) > config.width:
        floor = max(floor, np.partition(scores, -config.width)[-config.width])
    return np.flatnonzero(scores >= floor)[: config.width]


def _child(nodes: list[_Node], children: dict[tuple[int, int], int], parent: int, row: int) -> int:
    """The node of `parent` and one row more, which may have been met and dropped before."""
    if (parent, row) not in children:
        above = nodes[parent]
        expected = 0.0 if above.known is None else float(above.known.next_V[row])
        children[parent, row] = len(nodes)
        nodes.append(_Node((*above.rows, row), parent, above.language + expected))
    return children[parent, row]


def _ranked(
    nodes: list[_Node], beam_W: np.ndarray, total_W: np.ndarray, config: Config
) -> list[Hypothesis]:
    found = []
    for index, log_prob in zip(beam_W, total_W, strict=True):
        node = nodes[index]
        language = node.language + (node.known.end if node.known else 0.0)
        score = float(log_prob) + language + config.row_bonus * len(node.rows)
        found.append(Hypothesis(node.rows, float(log_prob), language, score))
    return sorted(found, key=lambda h: -h.score)
