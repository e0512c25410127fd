"""A user before and after adaptation: recordings into arrays, and a state onto its base."""

import dataclasses
import functools
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax import placing
from tiny_align_jax.adapt import delta as delta_lib
from tiny_align_jax.adapt import material
from tiny_align_jax.adapt.fit import Corpus
from tiny_align_jax.adapt.state import State
from tiny_align_jax.aligner import WEIGHTS_FILE, Aligner, feature_dim
from tiny_align_jax.data import vocabulary
from tiny_align_jax.features import cache, pipeline
from tiny_align_jax.transcribe import make_encoder
from tiny_align_jax.types import AudioError, CheckpointError, DataError, PyTree, Utterance
from tiny_align_jax.weights import loading

_BATCH_SIZE = 7  # of the encoder: 14 utterances in two calls
_NUM_THREADS = 4
_ROWS = 16  # a user's table grows by so many rows, so that users share compiled programs


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Utterances that were read.

    Attributes:
        used: those that could be.
        skipped: reason of every other one, by id.
        decoded: audio as the encoder takes it.
        frames: encoder frames, float16 [T, E]; empty where the encoder is part of the step.
    """

    used: tuple[Utterance, ...]
    skipped: dict[str, str]
    decoded: tuple[pipeline.Decoded, ...]
    frames: tuple[np.ndarray, ...]

    def corpus(self, aligner: Aligner, targets: Sequence[np.ndarray]) -> Corpus:
        """Arrays to adapt on."""
        if self.frames:
            return material.frames_corpus(self.frames, targets)
        module, config = loading.encoder_config(aligner.encoder_folder)
        num_samples = np.array([d.num_samples for d in self.decoded], np.int32)
        num_frames = np.array([module.num_frames(config, int(n)) for n in num_samples], np.int32)
        inputs = np.stack([d.inputs for d in self.decoded]).astype(np.float32)
        return Corpus(inputs, num_frames, num_samples, *material.padded_targets(targets))


def record(aligner: Aligner, utterances: Sequence[Utterance]) -> Recordings:
    """Reads utterances and runs the frozen encoder over them; nothing is cached."""
    return encode(aligner, read(aligner, utterances))


def read(aligner: Aligner, utterances: Sequence[Utterance]) -> Recordings:
    """Reads utterances for the encoder; bad audio and empty transcripts are skipped by name.

    Raises:
        DataError: none is left.
    """
    decoder, _ = make_encoder(aligner, _BATCH_SIZE)
    named = {u.utterance_id: u for u in utterances}
    skipped = {n: "no transcript" for n, u in named.items() if not vocabulary.spoken_form(u.text)}
    todo = {n: u for n, u in named.items() if n not in skipped}
    good: dict[str, pipeline.Decoded] = {}
    for name, decoded in pipeline.decode_ahead(todo, decoder, _NUM_THREADS):
        if isinstance(decoded, AudioError):
            skipped[name] = str(decoded)
        else:
            good[name] = decoded
    return _checked(Recordings(tuple(named[n] for n in good), skipped, tuple(good.values()), ()))


def encode(aligner: Aligner, recordings: Recordings) -> Recordings:
    """The same with frames; recordings of which the encoder makes NaN are skipped by name.

    Raises:
        DataError: none is left.
    """
    _, encoder = make_encoder(aligner, _BATCH_SIZE)
    made = [frames for batch in encoder(recordings.decoded) for _, frames in batch]
    frames = {i: f for i, f in enumerate(made) if not isinstance(f, AudioError)}
    used, decoded = recordings.used, recordings.decoded
    bad = {used[i].utterance_id: str(f) for i, f in enumerate(made) if i not in frames}
    good = Recordings(
        tuple(used[i] for i in frames),
        recordings.skipped | bad,
        tuple(decoded[i] for i in frames),
        tuple(frames.values()),
    )
    return _checked(good, recordings.skipped)


def silent(aligner: Aligner, recordings: Recordings) -> Recordings:
    """The same with zeros where `encode` will put frames: their shapes."""
    module, config = loading.encoder_config(aligner.encoder_folder)
    dim = feature_dim(aligner.card)
    counts = [module.num_frames(config, d.num_samples) for d in recordings.decoded]
    frames = tuple(np.zeros((n, dim), cache.STORE_DTYPE) for n in counts)
    return dataclasses.replace(recordings, frames=frames)


def _checked(recordings: Recordings, known: Container[str] = ()) -> Recordings:
    """Tells what else was skipped; at least one recording must be left."""
    for name, reason in recordings.skipped.items():
        if name not in known:
            logging.warning("skipped %s: %s", name, reason)
    if not recordings.used:
        raise DataError(f"none of the utterances can be used: {recordings.skipped}")
    return recordings


def fingerprint(workdir: str | os.PathLike) -> str:
    """SHA-256 of a base's weights, which a user's state is bound to."""
    return cache.file_sha256(Path(workdir) / WEIGHTS_FILE)


def extend(aligner: Aligner, extra_row_ids: np.ndarray) -> Aligner:
    """The aligner with further rows of the LLM's table at the end of those that it reads."""
    if not len(extra_row_ids):
        return aligner
    # So many at a time and on the host: no size of a user's own is compiled for.
    asked = np.resize(extra_row_ids, _whole(len(extra_row_ids)))
    rows_ND = loading.embedding_rows(aligner.llm_folder, asked, aligner.held("llm"))
    table_VD = np.concatenate([aligner.frozen.table_VD, rows_ND[: len(extra_row_ids)]])
    rows = extended(aligner, extra_row_ids)
    arrays = placing.put((table_VD, np.asarray(rows.row_ids, np.int32)))
    frozen = dataclasses.replace(aligner.frozen, table_VD=arrays[0], row_ids_V=arrays[1])
    return dataclasses.replace(aligner, vocabulary=rows, frozen=frozen)


def extended(aligner: Aligner, extra_row_ids: np.ndarray) -> vocabulary.Vocabulary:
    """The rows that `extend` makes it read."""
    old, new = aligner.vocabulary, aligner.tokenizer.token_strings(extra_row_ids)
    row_ids = np.concatenate([old.row_ids, np.asarray(extra_row_ids, np.int32)])
    return dataclasses.replace(old, row_ids=row_ids, strings=(*old.strings, *new))


def extend_whole(aligner: Aligner, extra_row_ids: np.ndarray) -> Aligner:
    """`extend`, and rows that nobody asked for up to the next multiple of 16 extra ones."""
    taken = np.concatenate([aligner.vocabulary.row_ids, extra_row_ids])
    count = _whole(len(extra_row_ids)) - len(extra_row_ids)
    free = np.setdiff1d(np.arange(len(taken) + count), taken)[:count]
    return extend(aligner, np.concatenate([extra_row_ids, free]).astype(np.int32))


def _whole(count: int) -> int:
    """The next multiple of 16, at least 16."""
    return max(1, -(-count // _ROWS)) * _ROWS


def apply(aligner: Aligner, state: State, base: str) -> Aligner:
    """The base as a user's state changes it.

    Args:
        aligner: the base.
        state: of the user.
        base: `fingerprint` of the base.

    Raises:
        CheckpointError: a state of another base.
    """
    if state.base != base:
        raise CheckpointError(
            f"the state of {state.user!r} was made on base {state.base[:16]}, this one is {base[:16]}; "
            "use the base it was made on, or personalise again on this one"
        )
    aligner = extend(aligner, state.extra_row_ids)
    delta: delta_lib.Delta = {name: jnp.asarray(array) for name, array in state.delta.items()}
    params: dict[str, Any] = delta_lib.apply(aligner.params, delta)
    if state.row_bias is not None:
        params["objective"] = {**params["objective"], "row_bias": jnp.asarray(state.row_bias)}
    if frames := delta_lib.frames_part(delta):
        params["frames"] = frames
    in_encoder = any(":encoder/" in name for name in delta)
    encoder = functools.partial(_change_encoder, delta) if in_encoder else None
    texts = tuple(state.about.get("texts", ()))
    return dataclasses.replace(aligner, params=params, user_encoder=encoder, user_texts=texts)


def _change_encoder(delta: delta_lib.Delta, params: PyTree) -> PyTree:
    return jax.device_get(delta_lib.apply({"encoder": params}, delta))["encoder"]
