"""A text file becomes a spoken corpus: many speakers, rooms and noises, compressed, with a manifest.

Lines go to workers in blocks; a block becomes one Ogg Opus file of a few minutes and one file of manifest
rows with time marks, which is written last: what is there is whole, and a killed run goes on with the
blocks that are missing. Who speaks a line, and in which room, is drawn from the line's number and the
seed alone.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import tarfile
from collections.abc import Iterator, Sequence

import numpy as np
import soundfile
import tqdm

from tiny_align_jax import checks, synthesize
from tiny_align_jax.data import distortion
from tiny_align_jax.types import SAMPLE_RATE_HZ, CacheError, ConfigError, DataError

MANIFEST = "manifest.jsonl"
_ROWS = ".rows"
# What libsndfile's compression level 0 to 1 means for Opus, bits a second and channel.
_OPUS_RANGE_BPS = (256_000, 6_000)
_GAP_S = 0.1  # between two utterances of a file, so that a codec's smear stays outside of both


@dataclasses.dataclass(frozen=True)
class Config:
    """Who speaks, where, and how it is stored.

    Attributes:
        voices: 'engine:voice' each, e.g. 'piper:FOLDER', 'flite:slt', 'espeak-ng:en-us'; speakers take
            them in turn, so that one named twice speaks twice as much.
        num_speakers: speakers made of the voices.
        max_pitch: factor on pitch and formants of the smallest speaker; 1.4 is about a child of eight.
        accented: share of speakers with a Mandarin accent (Piper voices only).
        rooms: share of utterances with an echo and background noise.
        block: utterances a file.
        bitrate_kbps: of Opus; 16 kHz speech is clear from about 12 up.
        seed: of the choice of speaker and room.
    """

    voices: tuple[str, ...] = ()
    num_speakers: int = 60
    max_pitch: float = 1.4
    accented: float = 0.5
    rooms: float = 0.5
    block: int = 64
    bitrate_kbps: float = 14.0
    seed: int = 0

    def __post_init__(self):
        problems = [
            f"{name}={getattr(self, name)}; expected 0 to 1"
            for name in ("accented", "rooms")
            if not 0 <= getattr(self, name) <= 1
        ]
        problems += checks.below(self, 1, "num_speakers", "block")
        if not 6 <= self.bitrate_kbps <= 256:
            problems.append(f"bitrate_kbps={self.bitrate_kbps}; expected 6 to 256")
        if not self.voices or any(
            v.partition(":")[0] not in synthesize.ENGINES for v in self.voices
        ):
            problems.append(
                f"voices={self.voices}; expected at least one 'engine:voice', with an engine out of "
                f"{', '.join(synthesize.ENGINES)}"
            )
        checks.refuse("spoken corpus", problems)


@dataclasses.dataclass(frozen=True)
class Line(synthesize.Line):
    """One utterance to speak, by which voice, and what the room does to it."""

    voice: str
    distortion: str


def plan(config: Config, sentences: Sequence[str]) -> list[list[Line]]:
    """Blocks of lines; all lines of a block are spoken by one voice.

    Raises:
        DataError: no sentence.
    """
    texts = [text for text in (s.strip() for s in sentences) if text]
    if not texts:
        raise DataError("no sentence to speak: the text file is empty")
    cast = speakers(config)
    by_voice: dict[str, list[Line]] = {}
    for i, text in enumerate(texts):
        rng = np.random.default_rng([config.seed, i])
        voice, speaker = cast[rng.integers(len(cast))]
        room = _room(rng) if rng.random() < config.rooms else ""
        line = Line(f"s{i:06d}", text, speaker, voice, room)
        by_voice.setdefault(voice, []).append(line)
    return [
        lines[start : start + config.block]
        for lines in by_voice.values()
        for start in range(0, len(lines), config.block)
    ]


def speakers(config: Config) -> list[tuple[str, synthesize.Speaker]]:
    """Voice and speaker of everybody in the cast."""
    cast = []
    for i, speaker in enumerate(synthesize.speakers(config.num_speakers, config.max_pitch)):
        rng = np.random.default_rng([config.seed, 1, i])
        accent = round(rng.uniform(0.2, 0.8), 2) if rng.random() < config.accented else 0.0
        cast.append(
            (config.voices[i % len(config.voices)], dataclasses.replace(speaker, accent=accent))
        )
    return cast


def _room(rng: np.random.Generator) -> str:
    noise = ("white", "pink")[rng.integers(2)]
    return f"reverb:{rng.uniform(0.1, 0.5):.2f}+{noise}:{rng.uniform(12, 35):.0f}"


def speak(
    config: Config,
    sentences: Sequence[str],
    folder: str | os.PathLike,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Speaks every sentence; returns the manifest, which the `jsonl` plug-in reads.

    Args:
        config: who speaks.
        sentences: one utterance each.
        folder: for Opus files and manifest; must not be shared with another text or config.
        num_workers: processes; None means one a core.
        progress: show a progress bar.

    Raises:
        DataError: no sentence, or one with nothing to speak.
        AssetError: a voice that is not there.
        CacheError: disk full or folder not writable, or another corpus in it; what was spoken is kept.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, {"config": dataclasses.asdict(config), "sentences": len(sentences)})
    blocks = plan(config, sentences)
    for voice in dict.fromkeys(config.voices):
        _engine(voice)  # what is missing is told here, not by every worker
    stems = [folder / f"block-{i:05d}" for i in range(len(blocks))]
    todo = [(b, s) for b, s in zip(blocks, stems, strict=True) if not _rows_of(s).is_file()]
    tasks = [(config.bitrate_kbps, block, stem) for block, stem in todo]
    with tqdm.tqdm(
        total=sum(len(b) for b, _ in todo), unit="utt", desc="speech", disable=not progress
    ) as bar:
        for done in _run(tasks, num_workers or os.cpu_count() or 1):
            bar.update(done)
    return collect(folder)


def collect(folder: str | os.PathLike) -> pathlib.Path:
    """Writes the manifest of the blocks that are there, of a corpus that was interrupted too; its path.

    Raises:
        DataError: no block in `folder`.
    """
    folder = pathlib.Path(folder)
    rows = sorted(folder.glob(f"block-*{_ROWS}"))
    if not rows:
        raise DataError(f"no block of a spoken corpus in {folder}")
    manifest = folder / MANIFEST
    _write_text(manifest, "".join(path.read_text(encoding="utf-8") for path in rows))
    return manifest


def pack(folder: str | os.PathLike, max_bytes: int) -> list[pathlib.Path]:
    """Archives of about equal size, at most `max_bytes` each, that together hold a spoken corpus.

    Unpacked into one folder they give the corpus back: `for f in pack-*.tar; do tar xf $f; done`.

    Raises:
        ConfigError: a block is larger than `max_bytes`.
        DataError: no corpus in `folder`.
    """
    folder = pathlib.Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"no {MANIFEST} in {folder}: speak the corpus first, to its end")
    files = [folder / MANIFEST, *sorted(folder.glob("block-*.ogg"))]
    groups: list[list[pathlib.Path]] = []
    room = 0
    for file in files:
        size = file.stat().st_size + 1536  # a member's header, and its padding to 512 bytes
        if size > max_bytes:
            raise ConfigError(
                f"{file.name} alone has {size} bytes, more than max_bytes={max_bytes}"
            )
        if size > room:
            groups.append([])
            room = max_bytes - 10_240  # tar pads archives to as much
        groups[-1].append(file)
        room -= size
    archives = []
    for number, group in enumerate(groups):
        archives.append(folder / f"pack-{number}.tar")
        with tarfile.open(archives[-1], "w") as tar:
            for file in group:
                tar.add(file, arcname=file.name)
    return archives


def _run(tasks: Sequence[tuple], num_workers: int) -> Iterator[int]:
    """Results of `_speak_block`, as they come; in this process if there is one worker."""
    if num_workers == 1 or len(tasks) < 2:
        yield from (_speak_block(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    workers = min(num_workers, len(tasks))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = [pool.submit(_speak_block, *task) for task in tasks]
        try:
            for block in concurrent.futures.as_completed(running):
                yield block.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _claim(folder: pathlib.Path, card: dict) -> None:
    """Notes what a folder holds, or refuses if it holds something else."""
    path, text = folder / "corpus.json", json.dumps(card, indent=1)
    if path.is_file() and json.loads(path.read_text()) != json.loads(text):
        raise CacheError(
            f"{folder} holds another spoken corpus ({path.name} tells which); name another folder"
        )
    _write_text(path, text)


def _engine(voice: str) -> synthesize.Engine:
    engine, _, name = voice.partition(":")
    return synthesize.find_engine(engine, name)


def _speak_block(bitrate_kbps: float, block: Sequence[Line], stem: pathlib.Path) -> int:
    """Speaks one block into its two files; returns its number of utterances."""
    rows, pieces, place = [], [], 0
    for line, waveform_S in _waveforms(block):
        start, place = place, place + len(waveform_S)
        marks = {"start_s": start / SAMPLE_RATE_HZ, "end_s": place / SAMPLE_RATE_HZ}
        about = {"voice": line.voice.partition(":")[0], "accent": line.speaker.accent}
        rows.append(
            {"audio": stem.with_suffix(".ogg").name, "text": line.text}
            | {"speaker": line.speaker.name, "id": line.utterance_id, "split": "train"}
            | marks
            | about
            | {"room": line.distortion or "dry"}
        )
        gap_S = np.zeros(round(_GAP_S * SAMPLE_RATE_HZ), np.float32)
        pieces += [waveform_S, gap_S]
        place += len(gap_S)
    _write_opus(stem.with_suffix(".ogg"), np.concatenate(pieces), bitrate_kbps)
    _write_text(_rows_of(stem), "".join(json.dumps(row) + "\n" for row in rows))
    return len(block)


def _waveforms(block: Sequence[Line]) -> Iterator[tuple[Line, np.ndarray]]:
    for line, waveform_S in synthesize.waveforms(block, _engine(block[0].voice)):
        heard_S = distortion.apply(line.distortion, waveform_S)
        yield line, heard_S / max(1.0, np.abs(heard_S).max() / 0.99)


def _write_opus(path: pathlib.Path, waveform_S: np.ndarray, bitrate_kbps: float) -> None:
    loudest, softest = _OPUS_RANGE_BPS
    level = (loudest - bitrate_kbps * 1000) / (loudest - softest)
    with synthesize.whole_file(path) as part:
        soundfile.write(
            part, waveform_S, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=level
        )


def _write_text(path: pathlib.Path, text: str) -> None:
    with synthesize.whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _rows_of(stem: pathlib.Path) -> pathlib.Path:
    return stem.with_suffix(_ROWS)
