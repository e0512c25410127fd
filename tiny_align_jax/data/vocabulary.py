"""The rows of the LLM's embedding table that a projector is trained against, and text <-> rows.

Built from training text alone. Three kinds:
    full    every row of the table;
    seen    the rows that the LLM's tokenizer gives for the training text;
    pieces  a unigram sub-word inventory (Kudo 2018) whose pieces are all tokens of the LLM: words that
            are too rare to be learnt whole are spelled with shorter tokens, down to single letters,
            so that a word never heard in training can still be read.

Row 0 is always the end-of-text token. `encode` gives rows (indices into `row_ids`), not LLM ids.
"""

import collections
import dataclasses
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tiny_align_jax.types import ConfigError, DataError

KINDS = ("full", "seen", "pieces")
_LETTERS = "abcdefghijklmnopqrstuvwxyz'"
# Rounds of segment-and-recount; the inventory stops changing after four or five.
_ROUNDS = 6
# Of saved log-probabilities; those in memory are rounded alike, so that a saved vocabulary spells as the
# one that trained.
_DECIMALS = 5


def spoken_form(text: str) -> str:
    """Lower case, no punctuation but apostrophes, single spaces: what a projector is trained to say.

    SmolLM2 needs 6.6 tokens an utterance for it against 11.0 in upper case.
    """
    composed = unicodedata.normalize("NFC", text.lower().replace("\u2019", "'"))
    return " ".join("".join(c if _is_spoken(c) else " " for c in composed).split())


def _is_spoken(character: str) -> bool:
    # Marks too: vowel signs of Indic scripts are no letters to Python, but half of every word.
    is_mark = unicodedata.category(character).startswith("M")
    return character.isalnum() or character == "'" or is_mark


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth
class Vocabulary:
    """A chosen set of table rows.

    Attributes:
        kind: one of KINDS.
        row_ids: int32[V] LLM id of each row; row 0 is end-of-text.
        strings: text of each row ('' for end-of-text); a word's first piece starts with a space.
        log_probs: float32[V] unigram log-probabilities ('pieces' only, else empty).
        tokenizer: object with `encode(text) -> ids`; only 'full' and 'seen' call it.
    """

    kind: str
    row_ids: np.ndarray
    strings: tuple[str, ...]
    log_probs: np.ndarray
    tokenizer: object = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def encode(self, text: str) -> np.ndarray:
        """Rows of a transcript, int32[L].

        Raises:
            DataError: the text has no speakable character, or a token outside 'seen' rows.
        """
        spoken = spoken_form(text)
        if not spoken:
            raise DataError(f"transcript {text!r} has nothing to say after normalisation")
        if self.kind == "pieces":
            rows = [r for word in spoken.split() for r in self._segment(" " + word)]
            return np.array(rows, np.int32)
        ids = self.tokenizer.encode(" " + spoken)  # type: ignore[attr-defined]
        missing = [i for i in ids if i not in self._row_of_id]
        if missing:
            raise DataError(
                f"token id(s) {missing[:5]} of {spoken!r} are not among the {len(self)} rows of the "
                f"{self.kind!r} vocabulary; use kind 'full' or 'pieces' for open text"
            )
        return np.array([self._row_of_id[i] for i in ids], np.int32)

    def decode(self, rows: Iterable[int]) -> str:
        """Text of rows; end-of-text is dropped."""
        return " ".join("".join(self.strings[int(r)] for r in rows).split())

    def to_json(self) -> dict:
        """Plain form for projector.json."""
        return {
            "kind": self.kind,
            "row_ids": self.row_ids.tolist() if self.kind != "full" else None,
            "num_rows": len(self),
            "log_probs": [round(float(p), _DECIMALS) for p in self.log_probs],
        }

    @property
    def _row_of_id(self) -> Mapping[int, int]:
        return _index(self, "_ids", lambda: {int(i): r for r, i in enumerate(self.row_ids)})

    @property
    def _row_of_string(self) -> Mapping[str, int]:
        return _index(self, "_pieces", lambda: {s: r for r, s in enumerate(self.strings) if s})

    def _segment(self, word: str) -> list[int]:
        pieces = _viterbi(word, self._piece_scores)
        if pieces is None:
            raise DataError(
                f"word {word.strip()!r} has a character that no row spells; known single characters: "
                f"{''.join(sorted(s for s in self._row_of_string if len(s) == 1))}"
            )
        return [self._row_of_string[p] for p in pieces]

    @property
    def _piece_scores(self) -> Mapping[str, float]:
        make = lambda: {s: float(self.log_probs[r]) for s, r in self._row_of_string.items()}  # noqa: E731
        return _index(self, "_scores", make)


def _index(vocabulary: Vocabulary, name: str, make):
    """Caches a derived look-up on the frozen instance."""
    if name not in vocabulary.__dict__:
        object.__setattr__(vocabulary, name, make())
    return vocabulary.__dict__[name]


def build(
    kind: str,
    texts: Sequence[str],
    token_strings: Sequence[str],
    end_id: int,
    tokenizer,
    min_count: int = 8,
) -> Vocabulary:
    """Chooses rows from training texts.

    Args:
        kind: one of KINDS.
        texts: training transcripts (never test text).
        token_strings: decoded string of every LLM id ('' for special tokens).
        end_id: LLM id of end-of-text.
        tokenizer: has `encode(text) -> list of LLM ids` without special tokens.
        min_count: 'pieces': a longer piece must occur this often in training to keep its row.

    Raises:
        ConfigError: unknown kind or no texts.
    """
    if kind not in KINDS:
        raise ConfigError(f"vocabulary kind {kind!r}; expected one of {', '.join(KINDS)}")
    spoken = [spoken_form(t) for t in texts]
    if not any(spoken):
        raise ConfigError("cannot build a vocabulary: no training text")
    if kind == "pieces":
        log_prob_of = _unigram_pieces(spoken, token_strings, min_count)
        id_of = {s: i for i, s in reversed(list(enumerate(token_strings))) if s in log_prob_of}
        chosen = sorted(log_prob_of, key=lambda s: id_of[s])
        ids = [end_id] + [id_of[s] for s in chosen]
        rounded = [round(log_prob_of[s], _DECIMALS) for s in chosen]
        log_probs = np.array([0.0, *rounded], np.float32)
    else:
        if kind == "full":
            others = range(len(token_strings))
        else:
            others = sorted({i for t in spoken if t for i in tokenizer.encode(" " + t)})
        ids = [end_id] + [i for i in others if i != end_id]
        log_probs = np.zeros(0, np.float32)
    strings = ("", *(token_strings[i] for i in ids[1:]))
    return Vocabulary(kind, np.array(ids, np.int32), strings, log_probs, tokenizer)


def missing_ids(vocabulary: Vocabulary, texts: Sequence[str]) -> np.ndarray:
    """LLM ids of tokens of `texts` that a 'seen' vocabulary has no row for; other kinds spell everything."""
    if vocabulary.kind != "seen":
        return np.zeros(0, np.int32)
    spoken = [s for s in map(spoken_form, texts) if s]
    wanted = {i for s in spoken for i in vocabulary.tokenizer.encode(" " + s)}  # type: ignore[attr-defined]
    return np.array(sorted(wanted - {int(i) for i in vocabulary.row_ids}), np.int32)


def from_json(saved: Mapping, token_strings: Sequence[str], end_id: int, tokenizer) -> Vocabulary:
    """The vocabulary that `Vocabulary.to_json` described."""
    if saved["kind"] == "full":
        return build("full", ["x"], token_strings, end_id, tokenizer)
    ids = np.array(saved["row_ids"], np.int32)
    strings = ("", *(token_strings[int(i)] for i in ids[1:]))
    log_probs = np.array(saved["log_probs"], np.float32)
    return Vocabulary(saved["kind"], ids, strings, log_probs, tokenizer)


def _unigram_pieces(
    spoken: Sequence[str], token_strings: Sequence[str], min_count: int
) -> dict[str, float]:
    """Log-probability of each kept piece: hard EM with pruning of pieces rarer than `min_count`."""
    words = collections.Counter(" " + w for t in spoken for w in t.split())
    tokens = set(token_strings)
    singles = {c for c in {*_LETTERS, *"".join(words)} - {" "} if c in tokens}
    singles |= {" " + c for c in singles if " " + c in tokens} | ({" "} & tokens)
    counts: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                if word[start:end] in tokens:
                    counts[word[start:end]] += count
    for _ in range(_ROUNDS):
        kept = {p: c for p, c in counts.items() if c >= min_count or p in singles}
        scores = _log_probs(kept, singles)
        counts = collections.Counter()
        for word, count in words.items():
            for piece in _viterbi(word, scores) or ():
                counts[piece] += count
    return _log_probs({p: c for p, c in counts.items() if c >= min_count or p in singles}, singles)


def _log_probs(counts: Mapping[str, float], singles: Iterable[str]) -> dict[str, float]:
    # Add one to single characters: a letter that training never spelled alone must stay usable.
    smoothed = {**{s: 1.0 for s in singles}}
    for piece, count in counts.items():
        smoothed[piece] = smoothed.get(piece, 0.0) + count
    total = math.log(sum(smoothed.values()))
    return {p: math.log(c) - total for p, c in smoothed.items()}


def _viterbi(word: str, scores: Mapping[str, float]) -> list[str] | None:
    """Most probable segmentation of `word` into pieces; None if a character has no piece."""
    best: list[tuple[float, int]] = [(0.0, 0)] + [(-math.inf, 0)] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            score = scores.get(word[start:end])
            if score is not None and best[start][0] + score > best[end][0]:
                best[end] = (best[start][0] + score, start)
    if best[-1][0] == -math.inf:
        return None
    pieces, end = [], len(word)
    while end:
        pieces.append(word[best[end][1] : end])
        end = best[end][1]
    return pieces[::-1]
