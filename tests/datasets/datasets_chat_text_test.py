"""What CHAT's marks mean for the words that were spoken, case by case and as properties."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tiny_align_jax.datasets import _chat_text
from tiny_align_jax.types import DataError

CASES = [
    # retracing and repetition: spoken, so kept
    ("<I want> [/] I want it .", "I want I want it"),
    ("<I went> [//] he goes .", "I went he goes"),
    ("the the [///] a dog .", "the the a dog"),
    ("it [/-] is [/?] on .", "it is on"),
    ("<<a b> [/] a c> [//] d .", "a b a c d"),
    ("no [x 3] .", "no no no"),
    ("<oh no> [x 2] .", "oh no oh no"),
    ("no [x 500] .", " ".join(["no"] * 20)),
    # fillers, fragments, events, remarks
    ("&-uh so &-um_hm yes .", "uh so um hm yes"),
    ("&um then &uh then .", "um then uh then"),
    ("&+w &+fr water &w .", "water"),
    ("&=laughs yes &=clears:throat .", "yes"),
    ("yes &*INV:mhm no &~ba .", "yes no"),
    ("well &{l=reads hm &}l=reads .", "well hm"),
    # codes in brackets, also without a space, and groups
    ("goed [* m:=ed] there [% points] .", "goed there"),
    ("goed[*] there [=! laughing] .", "goed there"),
    ("<on the> [?] table [=? label] [+ exc] .", "on the table"),
    ("<yeah> [>] right [<2] [e] [!] .", "yeah right"),
    ("[- spa] hola [^ c] [#1.5] .", "hola"),
    # pauses, linkers, terminators, punctuation
    ("one (.) two (..) three (...) four (2.4) five (1:02.5) six .", "one two three four five six"),
    ("+< and then +...", "and then"),
    ('+" what +/.', "what"),
    ("+^ so +//.", "so"),
    ("++ it is +/?", "it is"),
    ("+, go on +!?", "go on"),
    ('he said +"/.', "he said"),
    ('stop +".', "stop"),
    ("really , truly ‡ yes „ no ; so : hm ?", "really truly yes no so hm"),
    # shortenings, lengthening, stress, intonation, overlap signs
    ("it (i)s takin(g) (be)cause .", "it is taking because"),
    ("no:: wai^ting \u02c8fun ≠you ↑up ⌈both⌉ °soft° .", "no waiting fun you up both soft"),
    # word forms, compounds, omitted words, apostrophes, hyphens
    ("bim@c a@l dog@s:eng bi'bi@u sing@si cat$n .", "bim a dog bi'bi sing cat"),
    ("Northwest_Airlines choo+choo .", "Northwest Airlines choo choo"),
    ("0is he 0the going 0 .", "he going"),
    ("I\u2019m 'cause mother-in-law -x- .", "I'm 'cause mother-in-law x"),
    ("élève naïve Straße .", "élève naïve Straße"),
    # nothing
    ("", ""),
    ("0 .", ""),
    ("&=coughs .", ""),
    ("[% only a comment]", ""),
]


@pytest.mark.parametrize("tier, words", CASES)
def test_spoken_words(tier, words):
    cleaned = _chat_text.clean(tier)
    assert cleaned.text == words and not cleaned.unintelligible


def test_fillers_by_switch():
    options = _chat_text.Options(keep_fillers=False)
    assert _chat_text.clean("&-uh so &um then &+w .", options).text == "so then"


@pytest.mark.parametrize(
    "tier, said, meant",
    [
        ("I'm gonna [: going to] go .", "I'm gonna go", "I'm going to go"),
        ("a tup [:: cup] .", "a tup", "a cup"),
        ("<de bim> [: the dog] ran .", "de bim ran", "the dog ran"),
        ("xxx [: water] .", "", "water"),
    ],
)
def test_replacements_by_switch(tier, said, meant):
    assert _chat_text.clean(tier).text == said
    assert _chat_text.clean(tier, _chat_text.Options(use_replacements=True)).text == meant


@pytest.mark.parametrize("mark", ["xxx", "yyy", "www", "xx", "xxx@u", "XXX", "xxx."])
def test_unintelligible_speech_is_told_and_left_out(mark):
    cleaned = _chat_text.clean(f"she {mark} it .")
    assert cleaned.unintelligible and cleaned.text == "she it"


def test_words_that_only_look_unintelligible():
    assert _chat_text.clean("yyyy exxxtra .").text == "yyyy exxxtra"


@pytest.mark.parametrize("tier", ["a <b .", "a b> .", "a [* b .", "a b] .", "<a <b> [/] b ."])
def test_marks_without_partner_are_refused(tier):
    with pytest.raises(DataError, match="without"):
        _chat_text.clean(tier)


# --- properties

WORD = st.text("abcdefghijklmnopqrstuvwyz", min_size=2, max_size=8).filter(
    lambda word: word not in ("yy", "yyy", "www")
)
WORDS = st.lists(WORD, min_size=1, max_size=8)
SILENT = st.sampled_from(
    [
        "(.)",
        "(2.4)",
        "&=laughs",
        "&+st",
        "0the",
        "‡",
        ",",
        "&*INV:hm",
        "[* m]",
        "[=! sings]",
        "[%x]",
    ]
)
ANYTHING = st.text(st.characters(codec="utf-8"), max_size=60)
PIECES = (
    "dog takin(g) <he she> [/] [//] [x [x_2] [: &-uh &+w xxx +... +< 0is it@s a_b (.) [* ] > < no: "
    "\x15 1_2 \u2019 - '"
)
CHAT_LIKE = st.lists(st.sampled_from(PIECES.split(" ")), max_size=14).flatmap(
    lambda pieces: st.sampled_from([" ".join(pieces), "".join(pieces)])
)


@given(WORDS)
def test_plain_words_stay_as_they_are(words):
    assert _chat_text.clean(" ".join(words)).words == tuple(words)


@given(WORDS, st.lists(st.tuples(st.integers(0, 8), SILENT), max_size=6))
def test_marks_that_are_not_speech_change_nothing(words, marks):
    tokens = list(words)
    for place, mark in marks:
        tokens.insert(min(place, len(tokens)), mark)
    assert _chat_text.clean(" ".join(tokens)).words == tuple(words)


@given(WORDS, st.integers(0, 7), st.integers(1, 4), st.sampled_from(["/", "//", "///", "?", ">"]))
def test_grouping_and_retracing_keep_every_word(words, start, length, code):
    start = min(start, len(words) - 1)
    group = words[start : start + length]
    tier = [*words[:start], "<" + " ".join(group) + ">", f"[{code}]", *words[start + length :]]
    assert _chat_text.clean(" ".join(tier)).words == tuple(words)


@given(st.one_of(ANYTHING, CHAT_LIKE))
def test_any_text_gives_clean_words_or_a_clear_error(tier):
    try:
        cleaned = _chat_text.clean(tier)
    except DataError as error:
        assert "without" in str(error)
        return
    for word in cleaned.words:
        assert word and not re.search(r"[\s<>\[\]()@&+_\x15]", word)
        assert re.search(r"\w", word)


@given(st.one_of(ANYTHING, CHAT_LIKE))
@example(".xxx")
@example("-0a")
@example("a_xxx")
def test_cleaning_twice_is_cleaning_once(tier):
    try:
        once = _chat_text.clean(tier).text
    except DataError:
        return
    assert _chat_text.clean(once).text == once
