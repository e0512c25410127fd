"""A corpus without a corpus: sentences of our own grammar, or of a text of yours, spoken by a local voice.

Everything is made on first use and kept in `cache_dir`, as FLAC files and a manifest that the `jsonl`
plug-in reads too. A sentence's split is decided by a hash of its words: no sentence of test or
validation occurs in training. Texts and speakers are the same for the same config on any machine.
"""

import dataclasses
import hashlib
import json
import pathlib

import filelock
from absl import logging

from tiny_align_jax import checks, synthesize
from tiny_align_jax.datasets import _sentences, jsonl
from tiny_align_jax.types import ConfigError, DataError, Utterance

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is said, by whom, and where it is kept.

    Attributes:
        cache_dir: folder for the recordings.
        voice: folder of a Piper voice (`.onnx` and `.onnx.json`), or an espeak-ng voice name.
        engine: 'piper', 'espeak-ng', or 'auto': Piper if it is there, else espeak-ng.
        num_train: sentences of each split.
        num_validation: likewise.
        num_test: likewise.
        num_speakers: speakers made of the voice; every split hears all of them.
        seed: of the choice of sentences.
        sentences: text file with one sentence a line, used instead of the grammar.
        progress: show a progress bar while speaking.
    """

    cache_dir: str = ""
    voice: str = ""
    engine: str = "auto"
    num_train: int = 400
    num_validation: int = 40
    num_test: int = 60
    num_speakers: int = 6
    seed: int = 0
    sentences: str = ""
    progress: bool = True


def read(config: Config, split: str) -> list[Utterance]:
    """The utterances of `split`, sorted by id; spoken now unless they were before.

    Raises:
        DataError: unknown split, or too few different sentences.
        ConfigError: no cache folder, or counts that cannot work.
        AssetError: no voice.
        CacheError: disk full or folder not writable; what was spoken is kept.
    """
    if split not in SPLITS:
        raise DataError(f"synthetic has no split {split!r}; it has {', '.join(SPLITS)}")
    _check(config)
    lines = plan(config, split)
    engine = synthesize.find_engine(config.engine, config.voice)
    folder = _folder(config, split, lines, engine)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        _make(lines, engine, folder, split, config.progress)
    return jsonl.read(jsonl.Config(manifest=str(manifest)), split)


def plan(config: Config, split: str) -> list[synthesize.Line]:
    """What is to be spoken for `split`, without speaking it.

    Raises:
        DataError: too few different sentences, or no text file.
    """
    count = getattr(config, f"num_{split}")
    if config.sentences:
        texts = _sentences.select(
            checks.lines_of("dataset.synthetic.sentences", config.sentences), split, count
        )
    else:
        texts = _sentences.generate(split, count, config.seed)
    speakers = synthesize.speakers(config.num_speakers)
    return [
        synthesize.Line(f"{split}-{i:05d}", text, speakers[i % len(speakers)])
        for i, text in enumerate(texts)
    ]


def _check(config: Config) -> None:
    if not config.cache_dir:
        raise ConfigError(
            "dataset.synthetic.cache_dir is not set: where are recordings to be kept?"
        )
    counts = ("num_train", "num_validation", "num_test", "num_speakers")
    checks.refuse("dataset.synthetic", checks.below(config, 1, *counts))


def _folder(
    config: Config, split: str, lines: list[synthesize.Line], engine: synthesize.Engine
) -> pathlib.Path:
    """A folder of its own for exactly these lines in this voice."""
    content = f"{synthesize.VERSION} {engine.fingerprint} {lines}".encode()
    name = f"synthetic-{split}-{hashlib.sha256(content).hexdigest()[:16]}"
    return pathlib.Path(config.cache_dir) / name


def _make(
    lines: list[synthesize.Line],
    engine: synthesize.Engine,
    folder: pathlib.Path,
    split: str,
    progress: bool,
) -> None:
    """Speaks the lines and writes the manifest, last: it says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "render.lock"):
        paths = synthesize.render(lines, engine, folder, progress=progress)
        rows = [
            {"audio": path.name, "text": line.text, "speaker": line.speaker.name}
            | {"id": line.utterance_id, "split": split}
            for line, path in zip(lines, paths, strict=True)
        ]
        with synthesize.whole_file(folder / MANIFEST) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    logging.info("synthetic %s: %d utterances in %s", split, len(lines), folder)
