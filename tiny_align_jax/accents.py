"""Second-language accents as changes of phonemes, for voices that speak phonemes.

A learner replaces sounds that the first language lacks by near ones. Every change happens with the
speaker's own strength, so that one speaker says "think" and "sink" at different times, as learners do.
"""

import numpy as np

# ruff: noqa: RUF001  (IPA symbols look like letters)

# Sounds of English that Mandarin lacks, and what its speakers say instead; None leaves the sound out.
# Own selection among the confusions described by Swan and Smith (eds.), "Learner English", 2nd ed.,
# Cambridge 2001, chapter on Chinese speakers. Symbols are those of espeak-ng's American English.
_MANDARIN: dict[str, tuple[str | None, ...]] = {
    "θ": ("s", "t", "f"),
    "ð": ("z", "d", "l"),
    "v": ("w", "f"),
    "z": ("s",),
    "ʒ": ("ʃ",),
    "ɪ": ("i",),
    "ʊ": ("u",),
    "æ": ("ɛ",),
    "ʌ": ("ɑ",),
    "ɹ": ("l", "w"),
    "ŋ": ("n",),
    "ː": (None,),
}
# Consonants that end no Mandarin syllable: dropped, unvoiced, or followed by a vowel.
_FINAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "t": ((), ("t", "ə")),
    "d": (("t",), (), ("d", "ə")),
    "k": ((), ("k", "ə")),
    "ɡ": (("k",), ("ɡ", "ə")),
    "p": ((), ("p", "ə")),
    "b": (("p",), ("b", "ə")),
    "s": (("s", "ə"),),
    "l": (("ʊ",), ()),
    "m": (("n",),),
}
_LETTERS_OF_WORDS = frozenset("ˈˌ")


def mandarin(phonemes: list[str], strength: float, rng: np.random.Generator) -> list[str]:
    """Phonemes as a speaker of Mandarin may say them.

    Args:
        phonemes: IPA characters of a sentence, words apart by ' '.
        strength: probability of each change that is possible.
        rng: decides which happen.
    """
    spoken: list[str] = []
    for i, sound in enumerate(phonemes):
        after = next((p for p in phonemes[i + 1 :] if p not in _LETTERS_OF_WORDS), " ")
        ends_word = not after.isalpha()
        if ends_word and sound in _FINAL and rng.random() < strength / 2:
            spoken += _FINAL[sound][rng.integers(len(_FINAL[sound]))]
        elif sound in _MANDARIN and rng.random() < strength:
            other = _MANDARIN[sound][rng.integers(len(_MANDARIN[sound]))]
            spoken += [other] if other else []
        else:
            spoken.append(sound)
    return spoken
