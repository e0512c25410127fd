"""Which transcripts there are, which recording belongs to each, and what tables say of their speakers."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping

from tiny_align_jax.datasets._problems import Problem, raise_if_any
from tiny_align_jax.types import DataError

# In order of preference.
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif")
_ADRESS_FOLDER = "ADReSS-IS2020-data"
_ADRESS_AUDIO, _ADRESS_TEXT = "Full_wave_enhanced_audio", "transcription"
_SEXES = {"male": "m", "female": "f", "m": "m", "f": "f", "0": "m", "1": "f"}
_LABELS = {"0": "cc", "1": "cd"}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a table beside the transcripts says about a speaker."""

    age: float | None = None
    sex: str | None = None
    group: str = ""
    mmse: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """A transcript and where its recording may be.

    Attributes:
        path: the `.cha` file.
        name: its path below the root, without suffix: unique.
        media: recordings by lower-case name without suffix.
        mirror: folder below the media root where its own recording would be.
        metadata: from the corpus's tables.
    """

    path: pathlib.Path
    name: str
    media: Mapping[str, list[pathlib.Path]]
    mirror: pathlib.Path
    metadata: Metadata = Metadata()

    def find_audio(self, name: str, words: tuple[str, ...]) -> tuple[pathlib.Path | None, str]:
        """The recording, or None and why there is none.

        The name in `@Media` goes first; it may differ from the transcript's, which goes second.
        """
        if "missing" in words:
            return None, "@Media says the recording is missing"
        for stem in dict.fromkeys((pathlib.PurePath(name).stem if name else "", self.path.stem)):
            found = self.media.get(stem.lower(), [])
            near = [p for p in found if p.parent in (self.mirror, self.path.parent)] or found
            if len({p.parent for p in near}) > 1:
                places = ", ".join(str(p) for p in near[:3])
                return None, f"several recordings of that name ({places})"
            if near:
                return min(near, key=lambda p: AUDIO_SUFFIXES.index(p.suffix.lower())), ""
        kind = "extract the audio of the video" if "video" in words else "looked for"
        wanted = f"{name or self.path.stem}{{{','.join(AUDIO_SUFFIXES)}}}"
        return None, f"no recording ({kind}: {wanted})"


def sources(root: str, layout: str, media: str, split: str) -> list[Source]:
    """All transcripts of a split.

    Raises:
        DataError: no such folder, no transcripts, or a table that is malformed.
    """
    if not root or not pathlib.Path(root).is_dir():
        raise DataError(
            f"dataset.talkbank.root = {root!r} is no folder. Get a corpus with its media from "
            "https://talkbank.org (membership is free for researchers and clinicians)"
        )
    if layout == "adress2020":
        return _adress(pathlib.Path(root), split)
    return _folder(pathlib.Path(root), media, split)


def _folder(root: pathlib.Path, media: str, split: str) -> list[Source]:
    base = root if split == "all" else root / split
    media_root = pathlib.Path(media) if media else root
    if not media_root.is_dir():
        raise DataError(f"dataset.talkbank.media = {media!r} is no folder")
    audio = _audio_by_stem(media_root)
    return [
        Source(path, _name(path, root), audio, media_root / path.parent.relative_to(root))
        for path in _transcripts(base)
    ]


def _adress(root: pathlib.Path, split: str) -> list[Source]:
    if split == "all":
        return [source for part in ("train", "test") for source in _adress(root, part)]
    base = _adress_base(root, split)
    tables = _read_tables(base)
    audio = _audio_by_stem(base / _ADRESS_AUDIO)
    text = base / _ADRESS_TEXT
    found = []
    for path in _transcripts(text):
        inner = path.parent.relative_to(text)
        metadata = tables.get(path.stem, Metadata())
        if inner.name in _LABELS.values():
            metadata = dataclasses.replace(metadata, group=inner.name)
        name = f"{split}/{_name(path, text)}"
        found.append(Source(path, name, audio, base / _ADRESS_AUDIO / inner, metadata))
    return found


def _adress_base(root: pathlib.Path, split: str) -> pathlib.Path:
    """The folder of a split: both archives in one folder, or each in a folder of its own."""
    archive = root / f"ADReSS-IS2020-{split}"
    candidates = [
        folder / split
        for folder in (root, root / _ADRESS_FOLDER, archive / _ADRESS_FOLDER, archive)
    ]
    for base in candidates:
        if (base / _ADRESS_TEXT).is_dir():
            return base
    looked = ", ".join(str(base / _ADRESS_TEXT) for base in candidates)
    raise DataError(f"no ADReSS-2020 {split} set; looked for {looked}")


def _read_tables(base: pathlib.Path) -> dict[str, Metadata]:
    """Speakers of cc_meta_data.txt, cd_meta_data.txt and meta_data.txt: `ID ; age ; gender ; mmse`."""
    tables: dict[str, Metadata] = {}
    problems: list[Problem] = []
    for path in sorted(base.glob("*meta_data*.txt")):
        header, *rows = path.read_text(encoding="utf-8-sig").splitlines()
        names = [name.strip().lower() for name in header.split(";")]
        for number, row in enumerate(rows, start=2):
            values = [value.strip() for value in row.split(";")]
            if not row.strip():
                continue
            fields = dict(zip(names, values, strict=False))
            fault = _row_fault(names, values, fields)
            if fault:
                problems.append(Problem(str(path), number, fault))
            else:
                tables[fields["id"]] = _metadata(fields, path.name[:2])
    raise_if_any(problems, "ADReSS-2020 tables")
    return tables


def _row_fault(names: list[str], values: list[str], fields: Mapping[str, str]) -> str:
    if "id" not in names or len(values) < len(names):
        return f"expected {' ; '.join(names)} (with an ID), got {len(values)} field(s)"
    age, sex = fields.get("age", ""), fields.get("gender", "")
    if age and not age.replace(".", "", 1).isdigit():
        return f"age {age!r}, expected years"
    if sex and sex.lower() not in _SEXES:
        return f"gender {sex!r}, expected one of {', '.join(_SEXES)}"
    return ""


def _metadata(fields: Mapping[str, str], prefix: str) -> Metadata:
    mmse = fields.get("mmse", "")
    label = _LABELS.get(fields.get("label", ""), "")
    return Metadata(
        age=float(fields["age"]) if fields.get("age") else None,
        sex=_SEXES.get(fields.get("gender", "").lower()),
        group=prefix if prefix in _LABELS.values() else label,
        mmse=mmse if mmse.isdigit() else "",
    )


def _transcripts(base: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(base.rglob("*.cha")) if base.is_dir() else []
    if not found:
        raise DataError(f"{base}: no .cha file there")
    return found


def _audio_by_stem(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    found: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            found[path.stem.lower()].append(path)
    return found


def _name(path: pathlib.Path, root: pathlib.Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()
