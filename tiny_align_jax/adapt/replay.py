"""Replay: a few dozen utterances that a base was trained on, which keep a user's copy from forgetting.

They travel with the base in `replay.safetensors` (frames as int8 with a scale a channel, targets, and how
often each training speaker said each table row), so that a device adapts without the corpus. The file
is made once, where the corpus is. Methods that reach into the encoder need the recordings
themselves, so the corpus.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from tiny_align_jax.adapt import material, user, word_prior
from tiny_align_jax.adapt.fit import Corpus
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data.vocabulary import Vocabulary
from tiny_align_jax.train import corpus
from tiny_align_jax.types import AssetError, DataError, TinyAlignError, Utterance
from tiny_align_jax.weights import safetensors

FILE = "replay.safetensors"
_LEVELS = np.iinfo(np.int8).max


@dataclasses.dataclass(frozen=True)
class Replay:
    """Utterances that the base was trained on, and its training speakers' words.

    Attributes:
        frames: encoder frames of each utterance, float16 [T, E].
        targets: its table rows.
        topics_KV: how often each training speaker says each row.
        audio: encoder inputs of the utterances, for methods that reach into the encoder.
    """

    frames: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    topics_KV: np.ndarray
    audio: Corpus | None = None

    def corpus(self, like: Corpus) -> Corpus | None:
        """Arrays that go with a user's: those that are no longer; None if there is none."""
        if like.inputs.ndim == 2:
            return self.audio
        longest = like.inputs.shape[1]
        chosen = [i for i, frames in enumerate(self.frames) if len(frames) <= longest]
        if not chosen:
            return None
        frames = [self.frames[i] for i in chosen]
        return material.frames_corpus(frames, [self.targets[i] for i in chosen], longest)


def find(
    base: Aligner, workdir: str | os.PathLike, cache_dir: str, count: int, audio: bool = False
) -> Replay:
    """The base's replay: from its file, else from its corpus (and then the file is written).

    Without either there is nothing to replay, which is logged: adaptation then leans on its decay and
    on early stopping alone.

    Args:
        base: the aligner.
        workdir: where it was loaded from.
        cache_dir: folder of weights and features.
        count: utterances to draw where the corpus is used.
        audio: encoder inputs instead of frames.
    """
    path = Path(workdir) / FILE
    if path.is_file() and not audio:
        return load(path, base.vocabulary)
    try:
        made = _of_audio(base, count) if audio else of_corpus(base, cache_dir, count)
    except TinyAlignError as error:
        logging.warning("nothing to replay: no %s, and no corpus to make it from: %s", path, error)
        return Replay([], [], np.zeros((0, len(base.vocabulary)), np.float32))
    if audio:
        return made
    try:
        save(path, made)
    except AssetError as error:  # a base that cannot be written beside
        logging.warning("%s", error)
        return made
    return load(path, base.vocabulary)  # the first run sees what every later one will


def of_corpus(base: Aligner, cache_dir: str, count: int, seed: int = 0) -> Replay:
    """Draws utterances of the base's training split, and counts all of its words.

    Raises:
        TinyAlignError: the corpus is not there.
    """
    train = corpus.read_split(base.config).train
    frames, used = cached_frames(base, cache_dir, _draw(train, count, seed))
    targets = [base.vocabulary.encode(u.text) for u in used]
    return Replay(frames, targets, topics(base.vocabulary, train))


def _of_audio(base: Aligner, count: int, seed: int = 0) -> Replay:
    train = corpus.read_split(base.config).train
    recordings = user.read(base, _draw(train, count, seed))
    targets = [base.vocabulary.encode(u.text) for u in recordings.used]
    audio = recordings.corpus(base, targets)
    return Replay([], targets, topics(base.vocabulary, train), audio)


def _draw(train: Sequence[Utterance], count: int, seed: int) -> list[Utterance]:
    order = np.random.default_rng(seed).permutation(len(train))[:count]
    return [train[i] for i in sorted(order)]


def topics(rows: Vocabulary, utterances: Sequence[Utterance]) -> np.ndarray:
    """`word_prior.topic_counts` of a corpus."""
    said: dict[str, list[np.ndarray]] = {}
    for u in utterances:
        said.setdefault(u.speaker_id, []).append(rows.encode(u.text))
    return word_prior.topic_counts([said[s] for s in sorted(said)], len(rows))


def cached_frames(
    base: Aligner, cache_dir: str, utterances: Sequence[Utterance], progress: bool = False
) -> tuple[list[np.ndarray], list[Utterance]]:
    """Frames of utterances through the feature cache, and the utterances that have some.

    Raises:
        DataError: none has.
    """
    cache, report, _ = corpus.features(base.config, cache_dir, utterances, progress)
    used = [u for u in utterances if u.utterance_id in report.keys]
    if not used:
        raise DataError(f"none of {len(utterances)} utterance(s) has frames: {report.skipped}")
    return [cache.frames(report.keys[u.utterance_id]) for u in used], used


def save(path: str | os.PathLike, replay: Replay) -> None:
    """Writes a replay, frames and targets end to end, and of the counts those that are not 0.

    Raises:
        AssetError: full disk or unwritable folder.
    """
    frames_TE = np.concatenate(replay.frames).astype(np.float32)
    scale_E = np.maximum(np.abs(frames_TE).max(axis=0), 1e-6) / _LEVELS
    speakers, rows = np.nonzero(replay.topics_KV)
    arrays = {
        "frames": np.rint(frames_TE / scale_E).astype(np.int8),
        "frames_scale": scale_E,
        "num_frames": np.array([len(f) for f in replay.frames], np.int32),
        "targets": np.concatenate(replay.targets).astype(np.int32),
        "num_targets": np.array([len(t) for t in replay.targets], np.int32),
        "topics_shape": np.array(replay.topics_KV.shape, np.int32),
        "topics_speakers": speakers.astype(np.int16),
        "topics_rows": rows.astype(np.int32),
        "topics_counts": replay.topics_KV[speakers, rows].astype(np.int32),
    }
    safetensors.save_tree(path, arrays)


def load(path: str | os.PathLike, rows: Vocabulary) -> Replay:
    """Reads what `save` wrote.

    Raises:
        DataError: made for another table, or by another version.
        WeightsError: a corrupt file.
    """
    saved = safetensors.load_tree(path)
    num_speakers, num_rows = saved.get("topics_shape", (0, 0))
    if num_rows != len(rows):
        raise DataError(
            f"{path} counts {num_rows} table rows, the base reads {len(rows)}; delete it, it is made "
            "anew where the corpus is"
        )
    topics_KV = np.zeros((num_speakers, num_rows), np.float32)
    topics_KV[saved["topics_speakers"], saved["topics_rows"]] = saved["topics_counts"]
    frames_TE = (saved["frames"] * saved["frames_scale"]).astype(np.float16)
    frames = np.split(frames_TE, np.cumsum(saved["num_frames"])[:-1])
    targets = np.split(saved["targets"], np.cumsum(saved["num_targets"])[:-1])
    return Replay(frames, targets, topics_KV)
