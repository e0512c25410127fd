"""Normalisers: what they keep, and that scoring refuses what is no text."""

import pytest

from tiny_align_jax.metrics import _normalizers
from tiny_align_jax.types import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   WORLD!  ", "hello world"),
        ("Don't — well-known", "dont well known"),
        ("LET\u2019S GO", "lets go"),
        ("Grüße, 3 ÄPFEL", "grüße 3 äpfel"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("?!", ""),
    ],
)
def test_lower(text, expected):
    assert _normalizers.lower(text) == expected
    assert _normalizers.lower(expected) == expected


def test_whisper_english():
    assert (
        _normalizers.whisper_english("I don't know, twenty one Colour") == "i do not know 21 color"
    )
    assert _normalizers.whisper_english("") == ""


def test_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"'upper'.*lower, whisper_english"):
        _normalizers.normalize("upper", ["a"])


def test_not_a_string_is_refused():
    with pytest.raises(ConfigError, match=r"\[1\]"):
        _normalizers.normalize("lower", ["a", None])
