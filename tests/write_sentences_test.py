"""Sentences that a tiny LLM of random weights writes: what it is made to write, and what is dropped."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from tests import tiny_world
from tiny_align_jax import decode, write_sentences
from tiny_align_jax.data import tokenizer
from tiny_align_jax.responder import Llm
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import assets, loading

EXAMPLES = [*tiny_world.SENTENCES, "Bring me the seven apples!", "no"]
CONFIG = write_sentences.Config(
    num_words=40, per_word=2, chunk=4, num_examples=2, min_words=1, min_log_prob=-99.0,
    boost=2.0, batch_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    root = tmp_path_factory.mktemp("llm")
    tiny_world.make_llm(root / "llm", np.random.default_rng(0))
    loaded = loading.load_llm(assets.resolve(str(root / "llm"), root))
    model = decode.LanguageModel(loaded.module, loaded.config)
    return Llm(model, loaded.params), tokenizer.load(root / "llm")


@pytest.fixture(scope="module")
def wanted(llm):
    """Whole words: real ones, since an LLM of random weights cannot tell which are."""
    _, words = llm
    strings = words.token_strings()
    return [i for i, s in enumerate(strings) if s and s.strip() in {"the", "green", "dog", "call"}]


def _write(llm, wanted, held_out=(), **changes):
    config = dataclasses.replace(CONFIG, **changes)
    chunks = list(write_sentences.write(config, *llm, wanted, EXAMPLES, held_out))
    return [new for new, _ in chunks], chunks[-1][1]


@pytest.fixture(scope="module")
def written(llm, wanted):
    return _write(llm, wanted)


def test_every_sentence_has_a_word_that_was_asked_for_and_plain_words_only(llm, wanted, written):
    chunks, report = written
    assert len(wanted) >= 2 and report.kept == sum(map(len, chunks)) > 0
    assert report.kept + sum(report.dropped.values()) == 2 * len(wanted)
    asked = {llm[1].decode([i]).strip() for i in wanted}
    for text in itertools.chain(*chunks):
        assert asked & set(text.split()) and text == text.lower()
        assert all(c.isalpha() or c in " '" for c in text) and 1 <= len(text.split()) <= 12


def test_the_same_seed_writes_the_same_and_another_does_not(llm, wanted, written):
    assert _write(llm, wanted)[0] == written[0]
    assert _write(llm, wanted, seed=1)[0] != written[0]


def test_more_drafts_leave_fewer_requests_without_a_sentence(llm, wanted):
    _, report = _write(llm, wanted, max_words=2, chunk=2)
    more_chunks, more = _write(llm, wanted, max_words=2, chunk=2, drafts=6)
    assert report.kept <= more.kept == sum(map(len, more_chunks))
    assert more.kept + sum(more.dropped.values()) == 2 * len(wanted)


def test_sentences_of_validation_and_test_are_dropped_and_counted(llm, wanted, written):
    held_out = [text.upper() + "." for text in itertools.chain(*written[0])]
    chunks, report = _write(llm, wanted, held_out)
    assert not any(chunks) and report.dropped["held out"] == len(held_out)


@pytest.mark.parametrize(
    "text, log_prob, reason",
    [
        ("we saw the green dog", -1.0, ""),
        ("", -1.0, "cut"),
        ("we saw 2 green dogs", -1.0, "cut"),
        ("green dog", -1.0, "length"),
        ("we saw the greenish dog", -1.0, "word missing"),
        ("green green grass grows", -1.0, "loop"),
        ("a green a dog a cat a cow", -1.0, "loop"),
        ("green ideas sleep furiously", -6.0, "improbable"),
        ("it was green", -1.0, "held out"),
        ("it is green", -1.0, "repeat"),
    ],
)
def test_reasons(text, log_prob, reason):
    config = write_sentences.Config()
    found = write_sentences._fault(
        config, text, "green", log_prob, {"it is green"}, {"it was green"}
    )
    assert found == reason
    assert reason in ("", *write_sentences.REASONS)


def test_beginnings_of_words_are_not_asked_for(llm, monkeypatch):
    model, words = llm
    monkeypatch.setattr(write_sentences, "_MAX_CONTINUED", 1.1)
    everything = write_sentences.whole_words(model, words, 10_000, batch_size=4)
    texts = [words.decode([i]) for i in everything]
    assert all(t.startswith(" ") and t.strip().isalpha() for t in texts) and " the" in texts
    monkeypatch.setattr(write_sentences, "_MAX_CONTINUED", 0.0)
    assert write_sentences.whole_words(model, words, 10_000, batch_size=4) == []


def test_an_interrupted_file_ends_like_a_whole_one(llm, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(write_sentences, "whole_words", lambda *args: wanted)
    args = (CONFIG, *llm, EXAMPLES, [])
    whole = write_sentences.to_file(*args, tmp_path / "whole.txt", progress=False)

    def interrupted(*args, write=write_sentences.write, **kwargs):
        yield next(write(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write_sentences, "write", interrupted)
        write_sentences.to_file(*args, tmp_path / "part.txt", progress=False)
    monkeypatch.setattr(write_sentences, "whole_words", None)  # kept in the report
    again = write_sentences.to_file(*args, tmp_path / "part.txt", progress=False)
    assert (tmp_path / "part.txt").read_text() == (tmp_path / "whole.txt").read_text()
    assert (again.kept, again.dropped) == (whole.kept, whole.dropped)
    saved = json.loads((tmp_path / "part.json").read_text())
    assert saved["kept"] == len((tmp_path / "part.txt").read_text().splitlines())
    other = dataclasses.replace(CONFIG, seed=5)
    with pytest.raises(ConfigError, match="another config"):
        write_sentences.to_file(other, *args[1:], tmp_path / "part.txt", progress=False)


def test_configs_that_cannot_work(llm, wanted):
    with pytest.raises(ConfigError, match="chunk=0"):
        write_sentences.Config(chunk=0)
    with pytest.raises(ConfigError, match="max_words=2"):
        write_sentences.Config(max_words=2)
    with pytest.raises(ConfigError, match="as examples none has"):
        next(write_sentences.write(CONFIG, *llm, wanted, ["a b c d"], []))
