"""The frozen LLM writes the sentences of a synthetic corpus: a wide vocabulary in a given style.

The words asked for are the LLM's own: rows of its table that are a whole lower-case word, in the order
of its tokenizer's merges, which is about that of their frequency. A row counts as a whole word if the
LLM itself expects no more letters after it. Training sentences of the real corpus stand before each
request as worked examples, so that length and style are theirs.

A small LLM does not follow "use this word" reliably (SmolLM2-135M did in half of the cases), so that
writing is constrained: the word's row is made likelier until it is written, and a sentence cannot end
before. What is not one plain sentence is dropped and counted, and so is every sentence that validation
or test has.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import tqdm

from tiny_align_jax import checks, decode_loop, decode_steered
from tiny_align_jax.data import tokenizer
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.responder import Llm
from tiny_align_jax.types import ConfigError

REASONS = ("cut", "length", "word missing", "loop", "improbable", "repeat", "held out")
_WORD = re.compile(r" (?:[a-z]{2,}|a|i)")
_END = re.compile(r"[.?!]")
_ALLOWED = re.compile(r" ?[A-Za-z]+|'[a-z]*|,|[.?!]")
_SENTENCE = re.compile(r"[a-z']+( [a-z']+)*")
# Example words are content words: shorter ones ask for nothing.
_MIN_EXAMPLE_LETTERS = 4
_MIN_EXAMPLE_WORDS = 4
_MAX_SAME_WORD = 3  # a sentence that says one word more often is a loop of the LLM
_CONTEXT = "They asked me about"  # after which a row is tried as a whole word
_MAX_CONTINUED = 0.5  # probability of further letters above which it is only the beginning of one


@dataclasses.dataclass(frozen=True)
class Config:
    """How many sentences, and what they may look like.

    Attributes:
        num_words: rows asked for, the LLM's most frequent first.
        per_word: sentences asked for each; every round has other examples.
        chunk: words between two changes of the examples.
        num_examples: worked examples before a request.
        min_words: shortest sentence kept.
        max_words: longest sentence kept.
        min_log_prob: mean over a sentence's tokens, under the LLM, below which it is dropped.
        drafts: sentences written for each request, of which the likeliest good one is kept.
        boost: added to the logit of the word asked for, for every token that it is late.
        temperature: of the sampling.
        top_k: likewise.
        batch_size: sentences written side by side.
        seed: of examples and sampling.
    """

    num_words: int = 10_000
    per_word: int = 2
    chunk: int = 512
    num_examples: int = 8
    min_words: int = 3
    max_words: int = 12
    min_log_prob: float = -3.5
    drafts: int = 1
    boost: float = 1.0
    temperature: float = 0.8
    top_k: int = 50
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        counts = (
            "num_words",
            "per_word",
            "chunk",
            "num_examples",
            "min_words",
            "drafts",
            "batch_size",
        )
        checks.refuse("sentences", checks.below(self, 1, *counts))
        if self.max_words < self.min_words or self.temperature <= 0:
            raise ConfigError(
                f"sentences: min_words={self.min_words}, max_words={self.max_words}, temperature="
                f"{self.temperature}; expected min_words <= max_words and temperature > 0"
            )


@dataclasses.dataclass
class Report:
    """What became of the answers so far.

    Attributes:
        chunks_done: of the work, in order.
        kept: sentences kept.
        dropped: requests without a good sentence, by reason (REASONS).
        seconds: spent on writing.
    """

    chunks_done: int = 0
    kept: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    seconds: float = 0.0


def whole_words(
    llm: Llm, words: tokenizer.Tokenizer, count: int, batch_size: int = 64
) -> list[int]:
    """Ids among the LLM's `count` first lower-case rows after which it expects no more letters."""
    strings = words.token_strings()
    ids = [i for i, s in enumerate(strings) if s and _WORD.fullmatch(s)][:count]
    letters_V = _flags(llm, strings, re.compile(r"[A-Za-z]+"))
    prefix = _read(llm, words.encode(_CONTEXT))
    kept = []
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        word_B = np.resize(np.asarray(batch, np.int32), batch_size)
        continued_B = np.asarray(
            decode_steered.continued(llm.model, llm.params, prefix, word_B, letters_V)
        )
        kept += [i for i, p in zip(batch, continued_B, strict=False) if p < _MAX_CONTINUED]
    return kept


def write(
    config: Config,
    llm: Llm,
    words: tokenizer.Tokenizer,
    wanted: Sequence[int],
    examples: Iterable[str],
    held_out: Collection[str],
    *,
    report: Report | None = None,
    written: Iterable[str] = (),
    on_batch: Callable[[int], object] | None = None,
) -> Iterator[tuple[list[str], Report]]:
    """Writes chunk after chunk; each gives its new sentences, in spoken form, and the report so far.

    Args:
        config: how many, and what they may look like.
        llm: writes.
        words: its tokenizer.
        wanted: ids of the words to ask for, from `whole_words`.
        examples: training sentences to imitate.
        held_out: sentences of validation and test, which must not be written.
        report: of an earlier call that was interrupted: its chunks are not written again.
        written: that call's sentences.
        on_batch: called with the number of sentences written since the last call.

    Raises:
        ConfigError: no example is usable.
    """
    report = report or Report()
    blocked, seen = {spoken_form(s) for s in held_out}, set(written)
    styles = _styles(examples, blocked)
    starts = range(0, len(wanted), config.chunk)
    work = [(r, start) for r in range(config.per_word) for start in starts]
    for round_index, start in work[report.chunks_done :]:
        began_s = time.monotonic()
        rng = np.random.default_rng([config.seed, round_index, start])
        chunk = wanted[start : start + config.chunk]
        new = []
        answers = _ask(config, llm, words, styles, np.repeat(chunk, config.drafts), rng, on_batch)
        for word_id, drafts in zip(
            chunk, zip(*[answers] * config.drafts, strict=True), strict=True
        ):
            word = words.decode([word_id]).strip()
            judged = [(_fault(config, t, word, lp, seen, blocked), -lp, t) for t, lp in drafts]
            reason, _, text = min(judged)  # good ones, whose fault is '', come first
            if reason:
                report.dropped[reason] += 1
            else:
                seen.add(text)
                new.append(text)
        report.kept += len(new)
        report.chunks_done += 1
        report.seconds += time.monotonic() - began_s
        yield new, report


def _styles(examples: Iterable[str], blocked: Collection[str]) -> list[str]:
    """Training sentences that can stand as worked examples."""
    sentences = sorted({spoken_form(t) for t in examples} - set(blocked) - {""})
    usable = [
        s
        for s in sentences
        if len(s.split()) >= _MIN_EXAMPLE_WORDS
        and any(len(w) >= _MIN_EXAMPLE_LETTERS for w in s.split())
    ]
    if not usable:
        raise ConfigError(
            f"sentences: of {len(sentences)} training sentence(s) given as examples none has "
            f"{_MIN_EXAMPLE_WORDS} words, one of them of {_MIN_EXAMPLE_LETTERS} letters"
        )
    return usable


def _ask(config, llm, words, styles, chunk, rng, on_batch) -> Iterator[tuple[str, float]]:
    """A sentence for each word in spoken form ('' if it did not end), and its mean log-probability."""
    sampling = decode_loop.Sampling(
        config.max_words + 2, config.temperature, config.top_k, top_p=1.0
    )
    writer = decode_steered.Writer(llm.model, sampling, config.boost)
    prefix = _read(llm, _prompt(config, words, styles, rng))
    strings = words.token_strings()
    flags = [_flags(llm, strings, pattern) for pattern in (_ALLOWED, _END)]
    colon = np.int32(words.encode(":")[-1])
    for start in range(0, len(chunk), config.batch_size):
        batch = chunk[start : start + config.batch_size]
        word_B = np.resize(np.asarray(batch, np.int32), config.batch_size)
        seed = np.int32(rng.integers(2**31))
        draft = decode_steered.write_batch(writer, llm.params, prefix, word_B, colon, *flags, seed)
        host = [
            np.asarray(x)[: len(batch)] for x in (draft.ids_BM, draft.ended_B, draft.log_prob_B)
        ]
        for ids, ended, log_prob in zip(*host, strict=True):
            kept = ids[ids != decode_loop.NO_TOKEN]
            yield (spoken_form(words.decode(kept)) if ended else ""), float(log_prob) / len(kept)
        if on_batch:
            on_batch(len(batch))


def _prompt(
    config: Config, words: tokenizer.Tokenizer, styles: Sequence[str], rng
) -> Sequence[int]:
    """Worked examples and the start of a request; a word and a colon are to follow.

    The usual one of many lengths, always the same: it decides the shapes of compiled programs.
    """
    usual_rng = np.random.default_rng(config.seed)
    drawn = [_draw_prompt(config, words, styles, usual_rng) for _ in range(64)]
    usual = sorted(map(len, drawn))[len(drawn) // 2]
    while True:
        prompt = _draw_prompt(config, words, styles, rng)
        if len(prompt) == usual:
            return prompt


def _draw_prompt(config: Config, words, styles: Sequence[str], rng) -> Sequence[int]:
    lines = []
    for i in rng.integers(len(styles), size=config.num_examples):
        sentence = str(styles[int(i)])
        long = [w for w in sentence.split() if len(w) >= _MIN_EXAMPLE_LETTERS]
        lines.append(f"- {long[rng.integers(len(long))]}: {sentence.capitalize()}.\n")
    return words.encode("".join(lines) + "-")


def _fault(config: Config, text: str, word: str, log_prob: float, seen, blocked) -> str:
    """Why a sentence is dropped; '' if it is kept."""
    said = text.split()
    if not _SENTENCE.fullmatch(text):
        return "cut"
    if not config.min_words <= len(said) <= config.max_words:
        return "length"
    if word not in said:  # further letters came after it
        return "word missing"
    doubled = any(a == b for a, b in itertools.pairwise(said))
    if doubled or max(collections.Counter(said).values()) > _MAX_SAME_WORD:
        return "loop"
    if log_prob < config.min_log_prob:
        return "improbable"
    if text in blocked:
        return "held out"
    return "repeat" if text in seen else ""


def _flags(llm: Llm, strings: Sequence[str | None], pattern: re.Pattern) -> np.ndarray:
    """bool[V]: rows whose text is as the pattern says."""
    flags_V = np.zeros(llm.model.config.vocab_size, bool)
    for i, text in enumerate(strings):
        flags_V[i] = bool(text and pattern.fullmatch(text))
    return flags_V


def _read(llm: Llm, ids: Sequence[int]) -> decode_loop.Prefix:
    cache = decode_loop.read_prefix(llm.model, llm.params, jnp.asarray(ids, jnp.int32))
    return decode_loop.Prefix(cache, num_tokens=len(ids))


def to_file(
    config: Config,
    llm: Llm,
    words: tokenizer.Tokenizer,
    examples: Iterable[str],
    held_out: Collection[str],
    path: str | os.PathLike,
    *,
    llm_fingerprint: str = "",
    progress: bool = True,
) -> Report:
    """Writes sentences to `path`, one a line, and the report beside it (`.json`); resumes if called again.

    Args:
        config, llm, words, examples, held_out: see `write`.
        path: text file; grows chunk by chunk.
        llm_fingerprint: of the LLM's weights, for the report.
        progress: show a progress bar.

    Raises:
        ConfigError: no example is usable, or the file at `path` was written with another config.
    """
    path = pathlib.Path(path)
    card = {"config": dataclasses.asdict(config), "llm": llm_fingerprint}
    report, written, wanted = _resume(path, card)
    wanted = wanted or whole_words(llm, words, config.num_words, config.batch_size)
    with tqdm.tqdm(
        total=config.per_word * len(wanted) * config.drafts,
        initial=report.chunks_done * config.chunk * config.drafts,
        unit="draft",
        desc="sentences",
        disable=not progress,
    ) as bar:
        chunks = write(
            config, llm, words, wanted, examples, held_out,
            report=report, written=written, on_batch=bar.update,
        )  # fmt: skip
        for new, report in chunks:
            written += new
            _atomic_write(path, "".join(f"{s}\n" for s in written))
            done = dataclasses.asdict(report)
            distinct = len({word for s in written for word in s.split()})
            facts = {"distinct_words": distinct, "asked": wanted}
            _atomic_write(_report_path(path), json.dumps({**card, **done, **facts}))
    return report


def _report_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def _resume(path: pathlib.Path, card: Mapping[str, object]) -> tuple[Report, list[str], list[int]]:
    """What an interrupted call left: its report, its sentences, the words it asks for."""
    if not (path.is_file() and _report_path(path).is_file()):
        return Report(), [], []
    saved = json.loads(_report_path(path).read_text(encoding="utf-8"))
    if any(saved.get(k) != v for k, v in card.items()):
        raise ConfigError(
            f"{path} was written with another config or LLM ({_report_path(path).name} tells which); "
            "name another file, or delete both"
        )
    report = Report(**{f.name: saved[f.name] for f in dataclasses.fields(Report)})
    written = path.read_text(encoding="utf-8").splitlines()[: report.kept]
    return report, written, saved["asked"]


def _atomic_write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
