"""Reads CHAT transcripts (`.cha`), line by line, so that every fault has a file and a line.

What is read: the headers about people and media, and the main tiers with their time marks. Dependent
tiers (%mor, %gra, %wor ...) are passed over. The words of a main tier are left as they stand; what was
spoken is `_chat_text.clean`'s matter.

Source: MacWhinney, "Tools for Analyzing Talk, Part 1: The CHAT Transcription Format", 2024
(https://talkbank.org/0info/manuals/CHAT.pdf), chapters 4 to 8.
"""

import dataclasses
import pathlib
import re

from tiny_align_jax.datasets._problems import Problem

# \x15start_end\x15 in milliseconds. Some dumps lose the control character; then only a mark at the end of
# the tier is one. Older files name the media in it, and '-' after it means "go on playing".
_NAMED = r'(?:%(?:snd|mov|pic):"[^"]*"_)?'
_MARK = re.compile(rf"\x15\s*{_NAMED}(\d+)_(\d+)-?\s*\x15")
_BARE_MARK = re.compile(r"(?:^|\s)(\d+)_(\d+)$")
_AGE = re.compile(r"(\d+)(?:;(\d{1,2})?(?:\.(\d{1,2})?)?)?")
_TIER = re.compile(r"\*([^\s:]+):(.*)", re.DOTALL)
_SEXES = {"male": "m", "female": "f"}
_ID_FIELDS = 10


@dataclasses.dataclass(frozen=True)
class Participant:
    """One person of a transcript, as `@Participants` and `@ID` tell.

    Attributes:
        code: three letters or so: PAR, CHI, INV, MOT.
        role: Participant, Target_Child, Investigator, Mother.
        age: years, if given.
        sex: 'f' or 'm', if given.
        corpus: name of the corpus.
        group: e.g. Control, ProbableAD, SLI.
        custom: free field; the MMSE score in the dementia corpora.
    """

    code: str
    role: str
    age: float | None = None
    sex: str | None = None
    corpus: str = ""
    group: str = ""
    custom: str = ""


@dataclasses.dataclass(frozen=True)
class Tier:
    """One main tier: who said what, and when.

    Attributes:
        line: 1-based line it starts on.
        code: participant.
        text: its words with all CHAT marks but the time mark, continuation lines joined.
        start_ms: from the time mark; None without one.
        end_ms: likewise.
    """

    line: int
    code: str
    text: str
    start_ms: int | None
    end_ms: int | None


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One `.cha` file.

    Attributes:
        path: the file.
        participants: by code.
        media: name in `@Media`, '' without one.
        media_words: what follows the name: 'audio' or 'video', and 'unlinked', 'missing', 'notrans'.
        tiers: main tiers in order.
    """

    path: pathlib.Path
    participants: dict[str, Participant]
    media: str
    media_words: tuple[str, ...]
    tiers: tuple[Tier, ...]


def read(path: pathlib.Path, problems: list[Problem]) -> Transcript:
    """Parses a file; everything malformed is appended to `problems` with its line."""
    reader = _Reader(path, problems)
    for line, text in _logical_lines(path, problems):
        reader.take(line, text)
    return reader.finish()


def age_in_years(text: str) -> float | None:
    """Years from CHAT's `years;months.days`; months and days may be missing; None if it is no age."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return None
    years, months, days = (int(part or 0) for part in match.groups())
    return years + months / 12 + days / 365.25


def time_marks(text: str) -> tuple[str, int | None, int | None]:
    """A tier without its time marks, and the start of the first and the end of the last, in ms."""
    marks = [(int(start), int(end)) for start, end in _MARK.findall(text)]
    if marks:
        return _MARK.sub(" ", text).strip(), marks[0][0], marks[-1][1]
    bare = _BARE_MARK.search(text.strip())
    if bare is None:
        return text.strip(), None, None
    return text.strip()[: bare.start()].strip(), int(bare.group(1)), int(bare.group(2))


def _logical_lines(path: pathlib.Path, problems: list[Problem]) -> list[tuple[int, str]]:
    """Lines with their continuations (which begin with a TAB) joined, and the number of the first."""
    joined: list[tuple[int, str]] = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n ")
        except UnicodeDecodeError as error:
            problems.append(
                Problem(str(path), number, f"not UTF-8 ({error.reason}); convert the file")
            )
            continue
        if line.startswith("\t") and joined:
            joined[-1] = (joined[-1][0], f"{joined[-1][1]} {line.strip()}")
        elif line.strip():
            joined.append((number, line))
    return joined


class _Reader:
    """Collects what the lines of one file say."""

    def __init__(self, path: pathlib.Path, problems: list[Problem]) -> None:
        self._path = path
        self._problems = problems
        self._people: dict[str, Participant] = {}
        self._media, self._media_words = "", ()
        self._tiers: list[Tier] = []
        self._begun = self._ended = False

    def take(self, line: int, text: str) -> None:
        """One logical line."""
        if text.startswith("*"):
            self._tier(line, text)
        elif text.startswith("@"):
            name, _, value = text.partition(":")
            header = {"@Participants": self._participants, "@ID": self._id, "@Media": self._medium}
            self._begun |= name == "@Begin"
            self._ended |= name == "@End"
            if name in header:
                header[name](line, value.strip())
        elif not text.startswith("%"):
            self._fault(line, f"expected '@', '*', '%' or a TAB first, got {text[:40]!r}")

    def finish(self) -> Transcript:
        """The transcript, once all lines are taken."""
        if not (self._begun and self._ended):
            lost = "@End (cut off?)" if self._begun else "@Begin (not a CHAT file?)"
            self._fault(0, f"there is no {lost}")
        return Transcript(
            self._path, self._people, self._media, self._media_words, tuple(self._tiers)
        )

    def _fault(self, line: int, message: str) -> None:
        self._problems.append(Problem(str(self._path), line, message))

    def _participants(self, line: int, value: str) -> None:
        for entry in value.split(","):
            words = entry.split()
            if len(words) < 2:
                self._fault(line, f"@Participants needs 'CODE [Name] Role', got {entry.strip()!r}")
            else:
                self._people[words[0]] = Participant(words[0], words[-1])

    def _id(self, line: int, value: str) -> None:
        fields = [field.strip() for field in value.split("|")]
        if len(fields) < _ID_FIELDS:
            return self._fault(
                line, f"@ID needs {_ID_FIELDS} fields between '|', got {len(fields)}"
            )
        _, corpus, code, age, sex, group, _, role, _, custom = fields[:_ID_FIELDS]
        if age and age_in_years(age) is None:
            self._fault(line, f"age {age!r} of {code}, expected years;months.days such as 6;03.14")
        if sex and sex not in _SEXES:
            self._fault(line, f"sex {sex!r} of {code}, expected male or female")
        years = age_in_years(age) if age else None
        self._people[code] = Participant(code, role, years, _SEXES.get(sex), corpus, group, custom)
        return None

    def _medium(self, line: int, value: str) -> None:
        name, *words = (word.strip().strip('"') for word in value.split(","))
        if not name or not {"audio", "video"} & set(words):
            return self._fault(line, f"@Media needs 'name, audio' or 'name, video', got {value!r}")
        self._media, self._media_words = name, tuple(words)
        return None

    def _tier(self, line: int, text: str) -> None:
        match = _TIER.fullmatch(text)
        if match is None:
            return self._fault(line, f"expected '*CODE:<TAB>words', got {text[:40]!r}")
        code, content = match.groups()
        if code not in self._people:
            self._fault(line, f"speaker {code!r} is not in @Participants or @ID")
        words, start_ms, end_ms = time_marks(content)
        if "\x15" in words:
            self._fault(line, "time mark that is not start_end in milliseconds")
        self._tiers.append(Tier(line, code, words, start_ms, end_ms))
        return None
