"""Rows and spellings: what a projector may say, from training text alone."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests import tiny_tokenizer
from tiny_align_jax.data import tokenizer, vocabulary
from tiny_align_jax.types import ConfigError, DataError

TEXTS = [
    "The old dog slept near the door.",
    "PLEASE bring me seven green apples!",
    "we call it bear",
    "don't wake the dog's 7 friends",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.load(tiny_tokenizer.save(tmp_path_factory.mktemp("words")))


def _build(kind, words, texts=TEXTS, min_count=2):
    strings = words.token_strings()
    return vocabulary.build(kind, texts, strings, words.eos_id, words, min_count)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("  Don\u2019t  STOP, please! ", "don't stop please"),
        ("snake_case and-dash", "snake case and dash"),
        ("Route 66?", "route 66"),
        ("cafe\u0301 na\u00efve", "caf\u00e9 na\u00efve"),  # one accent, however it is encoded
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("...!", ""),
    ],
)
def test_spoken_form(text, spoken):
    assert vocabulary.spoken_form(text) == spoken
    assert vocabulary.spoken_form(spoken) == spoken


@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_training_text_is_read_back_as_it_is_spoken(kind, words):
    rows = _build(kind, words)
    for text in TEXTS:
        target = rows.encode(text)
        assert target.dtype == np.int32 and 0 not in target
        assert rows.decode(target) == vocabulary.spoken_form(text)
    assert rows.decode([0, *rows.encode("dog"), 0]) == "dog"


@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_rows_are_distinct_and_begin_with_the_end_of_text(kind, words):
    rows = _build(kind, words)
    assert rows.row_ids[0] == words.eos_id and rows.strings[0] == ""
    assert len(set(rows.row_ids.tolist())) == len(rows) == len(rows.strings)
    strings = words.token_strings()
    assert list(rows.strings[1:]) == [strings[i] for i in rows.row_ids[1:]]


@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_a_saved_vocabulary_spells_alike(kind, words):
    rows = _build(kind, words)
    saved = json.loads(json.dumps(rows.to_json()))
    again = vocabulary.from_json(saved, words.token_strings(), words.eos_id, words)
    np.testing.assert_array_equal(again.row_ids, rows.row_ids)
    np.testing.assert_array_equal(again.log_probs, rows.log_probs)
    assert (again.kind, again.strings) == (rows.kind, rows.strings)
    for text in TEXTS:
        np.testing.assert_array_equal(again.encode(text), rows.encode(text))


def test_seen_holds_what_the_tokenizer_gives_and_full_holds_all(words):
    ids = {i for t in TEXTS for i in words.encode(" " + vocabulary.spoken_form(t))}
    seen = _build("seen", words)
    assert set(seen.row_ids.tolist()) == ids | {words.eos_id}
    np.testing.assert_array_equal(seen.row_ids[seen.encode("bear")], words.encode(" bear"))
    assert sorted(_build("full", words).row_ids) == list(range(len(words.token_strings())))


def test_seen_names_the_tokens_it_lacks(words):
    with pytest.raises(DataError, match=r"zebra.*'seen' vocabulary; use kind 'full' or 'pieces'"):
        _build("seen", words).encode("zebra")


def test_pieces_spell_words_that_training_never_had(words):
    rows = _build("pieces", words)
    for text in ("zebra", "o'clock", "quick brown fox"):
        assert rows.decode(rows.encode(text)) == text


def test_a_common_word_is_one_piece_and_a_rare_one_is_spelled():
    strings = ["", " ", *"adegost", " dog", " toad", " to"]
    rows = vocabulary.build("pieces", ["dog"] * 5 + ["toad"], strings, 0, None, min_count=3)
    assert [rows.strings[r] for r in rows.encode("dog toad")] == [" dog", " ", "t", "o", "a", "d"]
    often = vocabulary.build("pieces", ["dog toad"] * 5, strings, 0, None, min_count=3)
    assert [often.strings[r] for r in often.encode("dog toad")] == [" dog", " toad"]


def test_digits_of_training_can_be_said_and_others_are_named(words):
    rows = _build("pieces", words)
    assert rows.decode(rows.encode("77 dogs")) == "77 dogs"
    with pytest.raises(DataError, match=r"word '\u0436' .* known single characters: .*'.*7.*z"):
        rows.encode("dog \u0436")


@pytest.mark.parametrize("kind", vocabulary.KINDS)
def test_text_without_words_is_an_error(kind, words):
    with pytest.raises(DataError, match=r"'\?!' has nothing to say"):
        _build(kind, words).encode("?!")


def test_impossible_vocabularies(words):
    with pytest.raises(ConfigError, match=r"'some'; expected one of full, seen, pieces"):
        _build("some", words)
    with pytest.raises(ConfigError, match="no training text"):
        _build("seen", words, texts=["...", ""])


SCORES = {" ": -3.0, "a": -2.0, "b": -2.5, "ab": -3.1, "ba": -9.0, "aba": -5.0, " a": -4.0}


@hypothesis.given(st.text(alphabet="ab", min_size=1, max_size=7))
@hypothesis.settings(deadline=None, max_examples=60)
def test_segmentation_is_the_best_of_all(word):
    text = " " + word

    def segmentations(rest):
        if not rest:
            yield []
        for piece in SCORES:
            if rest.startswith(piece):
                yield from ([piece, *tail] for tail in segmentations(rest[len(piece) :]))

    best = max(sum(SCORES[p] for p in pieces) for pieces in segmentations(text))
    chosen = vocabulary._viterbi(text, SCORES)
    assert "".join(chosen) == text
    assert sum(SCORES[p] for p in chosen) == pytest.approx(best)


def test_rare_pieces_lose_their_rows(words):
    stock = ["the", "there", "sentence", "sentences", "repeat", "dog", "slept", "door", "seven"]
    texts = [*np.random.default_rng(0).choice(stock, 60).tolist(), "bring apples"]
    rows = _build("pieces", words, texts, min_count=4)
    assert all(rows.decode(rows.encode(text)) == text for text in texts)
    spelled = [r for text in texts for r in rows.encode(text)]
    longer = {rows.strings[r]: spelled.count(r) for r in set(spelled) if len(rows.strings[r]) > 2}
    assert longer and min(longer.values()) >= 4
    assert " bring" in words.token_strings() and " bring" not in rows.strings
