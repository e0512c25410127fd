"""From a CHAT main tier to the words that were spoken.

The aim is what a microphone heard, which is not always what CHAT's analysis programs count: retraced and
repeated words were spoken and stay, omitted words were not and go.

    <I want> [/] I want &-uh (.) takin(g) it@s away [* m] +...   ->   I want I want uh taking it away
"""

import dataclasses
import re

from tiny_align_jax.types import DataError

# A tier is cut into codes in brackets, group marks, linkers and terminators, pauses, and words.
_TOKEN = re.compile(
    r"""
    (?P<code>\[[^\[\]]*\])
  | (?P<mark>\+(?:["^<,+≈≋](?=\s|$)|[./!?"]+(?=\s|$)))      # +< linkers, +... +//. +!? terminators
  | (?P<pause>\((?:\.{1,3}|\d+(?::\d+)?(?:\.\d*)?)\))         # (.) (2.4) (1:02.5)
  | (?P<open><) | (?P<close>>)
  | (?P<word>[^\s<>\[\]]+)
  | (?P<stray>[\[\]])
    """,
    re.VERBOSE,
)
_REPLACEMENT = re.compile(r"\[::?\s+(.*)\]")
_TIMES = re.compile(r"\[x\s*(\d+)\]")
# Spoken once is written once; a typing slip such as [x 500] must not make a book of it.
_MAX_TIMES = 20
_UNINTELLIGIBLE = frozenset(("xxx", "xx", "yyy", "yy", "www"))
# Before '&-' came in, fillers and fragments were both written with a bare '&'.
_OLD_FILLERS = frozenset(
    [
        "ah",
        "eh",
        "er",
        "erm",
        "hm",
        "hmm",
        "huh",
        "mhm",
        "mm",
        "mmhm",
        "oh",
        "uh",
        "uhhuh",
        "uhm",
        "um",
    ]
)
_SUFFIX = re.compile(r"[@$].*")
_JOINT = re.compile(r"[_+]")
# Right and left quotation mark and the modifier letter, all used as apostrophes.
_APOSTROPHE = dict.fromkeys(map(ord, "\u2019\u2018\u02bc"), "'")
# The range holds modifier letters, which count as \w: stress marks and the like.
_NOT_A_WORD_CHARACTER = re.compile("[^\\w'-]|_|[\u02b0-\u02ff]")
_EDGE = re.compile(r"^-+|['-]+$")


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices where more than one reading is sound.

    Attributes:
        keep_fillers: `&-uh` is spoken text.
        use_replacements: `gonna [: going to]` reads 'going to', not 'gonna'.
    """

    keep_fillers: bool = True
    use_replacements: bool = False


_DEFAULT = Options()


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """The words of a tier.

    Attributes:
        words: in order, without punctuation; case as in the transcript.
        unintelligible: whether `xxx`, `yyy` or `www` stood among them.
    """

    words: tuple[str, ...]
    unintelligible: bool

    @property
    def text(self) -> str:
        """The words with single spaces between them."""
        return " ".join(self.words)


def clean(tier: str, options: Options = _DEFAULT) -> Cleaned:
    """The spoken words of a main tier.

    Raises:
        DataError: brackets that do not match.
    """
    # Each open group is a list of items; an item is the list of words that a code after it refers to.
    groups: list[list[list[str]]] = [[]]
    for match in _TOKEN.finditer(tier):
        kind, token = match.lastgroup, match.group()
        if kind == "open":
            groups.append([])
        elif kind == "close":
            if len(groups) == 1:
                raise DataError(f"'>' without '<' in {tier!r}")
            groups[-2].append(_flat(groups.pop()))
        elif kind == "stray":
            raise DataError(f"{token!r} without its partner in {tier!r}")
        elif kind == "code" and groups[-1]:
            groups[-1][-1] = _apply(token, groups[-1][-1], options)
        elif kind == "word":
            groups[-1].append(_words(token, options))
    if len(groups) > 1:
        raise DataError(f"'<' without '>' in {tier!r}")
    words = _flat(groups[0])
    spoken = tuple(word for word in words if word != _UNKNOWN)
    return Cleaned(spoken, len(spoken) < len(words))


_UNKNOWN = "\0"  # stands for xxx until all codes are applied; no word holds it


def _flat(items: list[list[str]]) -> list[str]:
    return [word for item in items for word in item]


def _apply(code: str, item: list[str], options: Options) -> list[str]:
    """What a code in brackets makes of the word or group before it."""
    if times := _TIMES.fullmatch(code):
        return item * max(1, min(int(times.group(1)), _MAX_TIMES))
    replacement = _REPLACEMENT.fullmatch(code)
    if replacement and options.use_replacements:
        return _flat([_words(word, options) for word in replacement.group(1).split()])
    return item


def _words(token: str, options: Options) -> list[str]:
    """The words that one token stands for: none, one, or several of a compound.

    `0is` was left out by the speaker, and a bare `0` says that there was no speech: neither is a word.
    """
    if token.startswith("&"):
        token = _filler(token) if options.keep_fillers else ""
    parts = _JOINT.split(_SUFFIX.sub("", token.translate(_APOSTROPHE)))
    words = (_EDGE.sub("", _NOT_A_WORD_CHARACTER.sub("", part)) for part in parts)
    spoken = [word for word in words if word and not word.startswith("0")]
    return [_UNKNOWN if word.lower() in _UNINTELLIGIBLE else word for word in spoken]


def _filler(token: str) -> str:
    """The word of a filler; '' for fragments (&+), events (&=), nonwords (&~), remarks (&*) and the like."""
    if token.startswith("&-"):
        return token[2:]
    return token[1:] if token[1:].lower() in _OLD_FILLERS else ""
