"""Named text normalisers, applied to references and hypotheses alike before any score.

A score means nothing without the name of its normaliser, so every table carries it.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from tiny_align_jax.types import ConfigError

# Apostrophes join ("don't" -> "dont"); all other punctuation separates ("well-known" -> 2 words).
_APOSTROPHES = re.compile(r"['\u2018\u2019\u02bc`]")


def lower(text: str) -> str:
    """Lower-case, punctuation and symbols off, single spaces; letters of any script and digits stay."""
    text = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).lower())
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in text)
    return " ".join("".join(kept).split())


def whisper_english(text: str) -> str:
    """Whisper's English normaliser: contractions spelt out, numbers as digits, fillers dropped.

    Source: OpenAI Whisper (Radford et al. 2022, appendix C), as packaged by `whisper-normalizer`.
    """
    return _english()(text).strip()


@functools.cache
def _english() -> Callable[[str], str]:
    # Imported here: it compiles hundreds of patterns, which only scoring needs.
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


NORMALIZERS: dict[str, Callable[[str], str]] = {"lower": lower, "whisper_english": whisper_english}


def normalize(name: str, texts: Sequence[str]) -> list[str]:
    """`texts` through the normaliser `name`.

    Raises:
        ConfigError: no such normaliser, or a text that is not a string.
    """
    if name not in NORMALIZERS:
        raise ConfigError(f"unknown normaliser {name!r}; there are: {', '.join(NORMALIZERS)}")
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if bad:
        raise ConfigError(f"texts to score must be strings; these positions are not: {bad[:10]}")
    return [NORMALIZERS[name](text) for text in texts]


def normalize_pair(
    name: str, references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Both sides through the same normaliser.

    Raises:
        ConfigError: unknown normaliser, or lists of different lengths.
    """
    if len(references) != len(hypotheses):
        raise ConfigError(
            f"{len(references)} references but {len(hypotheses)} hypotheses; "
            "scores need one hypothesis a reference, in the same order"
        )
    return normalize(name, references), normalize(name, hypotheses)
