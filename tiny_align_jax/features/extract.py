"""Runs the frozen encoder over a corpus once and keeps its frames in the feature cache.

Only what the cache lacks is decoded and encoded, so a second call costs a look at every file's size and
time of change; a run whose features are cached never loads the encoder.
"""

import collections
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import tqdm
from absl import logging

from tiny_align_jax.features import cache, hashing, pipeline, writer
from tiny_align_jax.types import (
    SAMPLE_RATE_HZ,
    AudioError,
    CacheError,
    ConfigError,
    DataError,
    PyTree,
    Utterance,
)

# Raise whenever decoding, resampling, `preprocess` or an encoder's arithmetic changes what is cached.
PREPROCESSING_VERSION = "1"
LONG_POLICIES = ("error", "skip", "truncate")
BAD_POLICIES = ("error", "skip")
HASHES_FILE = "audio_hashes.json"
_MAX_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Report:
    """What `extract` did.

    Attributes:
        keys: cache key of every utterance that has frames, by utterance id.
        skipped: reason of every utterance that has none, by utterance id.
        truncated: ids of utterances cut to the window.
        num_encoded: utterances that were not in the cache before.
        audio_s: seconds of audio encoded now.
        wall_s: seconds the call took.
        compile_s: part of `wall_s` spent on loading parameters and compiling.
    """

    keys: Mapping[str, str]
    skipped: Mapping[str, str]
    truncated: tuple[str, ...]
    num_encoded: int
    audio_s: float
    wall_s: float
    compile_s: float

    def __str__(self) -> str:
        speed = self.audio_s / max(self.wall_s - self.compile_s, 1e-9)
        lines = [
            f"{len(self.keys)} utterance(s) with frames, {self.num_encoded} of them encoded now: "
            f"{self.audio_s / 60:.1f} min of audio in {self.wall_s:.1f} s, {self.compile_s:.1f} s of "
            f"that to load and compile ({speed:.0f} times real time without)",
            f"{len(self.skipped)} skipped, {len(self.truncated)} cut to the window",
            *(f"  skipped {name}: {why}" for name, why in self.skipped.items()),
        ]
        return "\n".join(lines)


def make_spec(
    encoder_module: ModuleType,
    encoder_config: Any,
    fingerprint: str,
    *,
    window_s: float,
    layers: Sequence[int] = (-1,),
    dtype: Any = jnp.float32,
) -> cache.Spec:
    """What decides the frames besides the audio; needs no weights.

    Args:
        encoder_module: plug-in of the family `encoders`.
        encoder_config: its Config.
        fingerprint: SHA-256 of its weights file.
        window_s: length that every utterance is padded to.
        layers: hidden states to keep: 0 is the input of the first layer, -1 the final output.
        dtype: dtype to run the encoder in.

    Raises:
        ConfigError: a layer that the encoder does not have, or no window.
    """
    depth = encoder_config.num_layers
    strangers = [layer for layer in layers if not -depth - 1 <= layer <= depth]
    if strangers or not layers:
        raise ConfigError(
            f"encoder.layers={tuple(layers)}: the encoder has hidden states 0 to {depth} "
            "(-1 is the final output); name at least one of them"
        )
    if window_s <= 0:
        raise ConfigError(f"encoder.window_s={window_s}; expected more than 0 seconds")
    return cache.Spec(
        encoder=f"{encoder_module.__name__.rsplit('.', 1)[-1]} {encoder_config}",
        fingerprint=fingerprint,
        preprocessing=PREPROCESSING_VERSION,
        window_samples=round(window_s * SAMPLE_RATE_HZ),
        layers=tuple(layer % (depth + 1) for layer in layers),
        compute_dtype=jnp.dtype(dtype).name,
    )


def extract(
    utterances: Sequence[Utterance],
    encoder_module: ModuleType,
    encoder_config: Any,
    params: PyTree | Callable[[], PyTree],
    fingerprint: str,
    *,
    window_s: float,
    cache_dir: str | pathlib.Path,
    layers: Sequence[int] = (-1,),
    batch_size: int = 16,
    dtype: Any = jnp.float32,
    long: str = "error",
    bad_audio: str = "skip",
    num_workers: int | None = None,
    progress: bool = False,
    shard_bytes: int = writer.SHARD_BYTES,
) -> tuple[cache.FeatureCache, Report]:
    """Frames of all utterances, encoding those that the cache lacks.

    Interrupted at any point, a later call goes on from the last shard written. Frames are float16 and
    cover the utterance's own audio, without the silence up to the window.

    Args:
        utterances: what to encode.
        encoder_module: plug-in of the family `encoders`.
        encoder_config: its Config.
        params: its parameters, or a function that loads them, called only if anything is to be
            encoded.
        fingerprint: SHA-256 of its weights file.
        window_s: length that every utterance is padded to, seconds.
        cache_dir: folder of all caches.
        layers: hidden states to keep, side by side in the last axis (see `features.cache`).
        batch_size: utterances a call of the encoder.
        dtype: dtype the encoder runs in.
        long: an utterance longer than the window is an 'error', a 'skip', or cut ('truncate').
        bad_audio: audio that cannot be read is an 'error' or a 'skip'.
        num_workers: threads that decode; None means one a core.
        progress: show a progress bar on standard error.
        shard_bytes: bytes of frames between writes to the disk.

    Returns:
        The cache and the report; `report.keys` leads from utterance ids to the cache.

    Raises:
        AudioError: under 'error', once everything readable is cached; lists every bad utterance.
        DataError: no utterance is left, or ids occur more than once.
        CacheError: disk full, or folder not writable; what was written is kept.
        ConfigError: unknown policy, no such layer, or a window that the encoder refuses.
    """
    _check_policies(long, bad_audio)
    _check_unique(utterances)
    began_s = time.monotonic()
    num_workers = num_workers or os.cpu_count() or 1
    spec = make_spec(
        encoder_module, encoder_config, fingerprint, window_s=window_s, layers=layers, dtype=dtype
    )
    decoder = pipeline.Decoder(
        encoder_module, encoder_config, spec.window_samples, long == "truncate"
    )
    encoder = pipeline.BatchEncoder(
        encoder_module, encoder_config, params,
        layers=spec.layers, batch_size=batch_size, dtype=dtype,
    )  # fmt: skip
    memo = pathlib.Path(cache_dir) / HASHES_FILE
    hashes, unreadable = hashing.hash_files((u.audio_path for u in utterances), memo, num_workers)
    keys = {
        u.utterance_id: spec.key(hashes[u.audio_path], u.start_s, u.end_s, u.distortion)
        for u in utterances
        if u.audio_path in hashes
    }
    tally = _Tally()
    if not _holds_all(spec.folder(cache_dir), spec, keys.values()):
        with writer.CacheWriter.open(cache_dir, spec, shard_bytes) as sink:
            wanted = {keys[u.utterance_id]: u for u in utterances if u.utterance_id in keys}
            todo = {key: u for key, u in wanted.items() if key not in sink}
            decoded = pipeline.decode_ahead(todo, decoder, num_workers)
            with tqdm.tqdm(
                total=len(todo), desc="features", unit="utt", mininterval=1, disable=not progress
            ) as bar:
                _encode_all(decoded, encoder, sink, tally, bar)
    features = cache.FeatureCache.open(spec.folder(cache_dir), spec=spec)
    good, errors, truncated = _sorted(utterances, keys, unreadable, features, tally, long)
    report = Report(
        keys=good,
        skipped={name: str(error) for name, error in errors.items()},
        truncated=truncated,
        num_encoded=tally.num_encoded,
        audio_s=tally.audio_s,
        wall_s=time.monotonic() - began_s,
        compile_s=encoder.compile_s,
    )
    _raise_refused(errors, len(good), long, bad_audio)
    logging.info("feature cache %s: %s", features.folder, report)
    return features, report


@dataclasses.dataclass
class _Tally:
    """Counts of one run: faults by cache key, and what was encoded."""

    faults: dict[str, AudioError] = dataclasses.field(default_factory=dict)
    num_encoded: int = 0
    audio_s: float = 0.0


def _check_policies(long: str, bad_audio: str) -> None:
    if long not in LONG_POLICIES:
        raise ConfigError(f"features.too_long={long!r}; expected one of {', '.join(LONG_POLICIES)}")
    if bad_audio not in BAD_POLICIES:
        raise ConfigError(
            f"features.bad_audio={bad_audio!r}; expected one of {', '.join(BAD_POLICIES)}"
        )


def _check_unique(utterances: Sequence[Utterance]) -> None:
    counts = collections.Counter(u.utterance_id for u in utterances)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(f"utterance id(s) occur more than once: {', '.join(repeated[:_MAX_SHOWN])}")


def _holds_all(folder: pathlib.Path, spec: cache.Spec, keys: Iterable[str]) -> bool:
    """Whether an intact cache has every key, so that nothing need be written (or locked)."""
    try:
        features = cache.FeatureCache.open(folder, spec=spec)
    except CacheError:
        return False
    return all(key in features for key in keys)


def _encode_all(
    decoded: Iterable[tuple[str, pipeline.Decoded | AudioError]],
    encoder: pipeline.BatchEncoder,
    sink: writer.CacheWriter,
    tally: _Tally,
    bar: tqdm.tqdm,
) -> None:
    """Drains the decoder through the encoder into the cache."""
    began_s = time.monotonic()
    for results in encoder(_without_faults(decoded, tally, bar)):
        for item, frames in results:
            if isinstance(frames, AudioError):
                tally.faults[item.key] = frames
                continue
            sink.add(item.key, frames, item.full_samples)
            tally.num_encoded += 1
            tally.audio_s += item.num_samples / SAMPLE_RATE_HZ
        bar.update(len(results))
        running_s = time.monotonic() - began_s - encoder.compile_s
        bar.set_postfix_str(f"{tally.audio_s / max(running_s, 1e-3):.0f}x real time", refresh=False)


def _without_faults(
    decoded: Iterable[tuple[str, pipeline.Decoded | AudioError]], tally: _Tally, bar: tqdm.tqdm
) -> Iterator[pipeline.Decoded]:
    for key, item in decoded:
        if isinstance(item, AudioError):
            tally.faults[key] = item
            bar.update()
        else:
            yield item


def _sorted(
    utterances: Sequence[Utterance],
    keys: Mapping[str, str],
    unreadable: Mapping[str, AudioError],
    features: cache.FeatureCache,
    tally: _Tally,
    long: str,
) -> tuple[dict[str, str], dict[str, AudioError], tuple[str, ...]]:
    """Keys of utterances with frames, errors of those without, and which of the former were cut."""
    good: dict[str, str] = {}
    errors: dict[str, AudioError] = {}
    truncated: list[str] = []
    window_samples = features.spec.window_samples
    for utterance in utterances:
        name, key = utterance.utterance_id, keys.get(utterance.utterance_id)
        if key is None:
            errors[name] = unreadable[utterance.audio_path]
        elif key in tally.faults:
            errors[name] = tally.faults[key]
        elif features.num_samples(key) <= window_samples:
            good[name] = key
        elif long == "truncate":
            good[name] = key
            truncated.append(name)
        else:  # cut to the window by an earlier run whose policy was another one
            num_samples = features.num_samples(key)
            errors[name] = pipeline.too_long(utterance, num_samples, window_samples)
    return good, errors, tuple(truncated)


def _raise_refused(
    errors: Mapping[str, AudioError], num_good: int, long: str, bad_audio: str
) -> None:
    """Raises for utterances that the policies do not let pass, or if none is left."""
    refused = {
        name: error
        for name, error in errors.items()
        if (long if isinstance(error, pipeline.TooLongError) else bad_audio) == "error"
    }
    if refused:
        raise AudioError(
            f"{len(refused)} utterance(s) cannot be used, {num_good} others are cached:{_listed(refused)}"
        )
    if not num_good:
        raise DataError(f"no utterance can be used; {len(errors)} skipped:{_listed(errors)}")


def _listed(errors: Mapping[str, AudioError]) -> str:
    lines = [f"\n  {name}: {error}" for name, error in errors.items()]
    return "".join(lines[:_MAX_SHOWN]) + ("\n  ..." if len(lines) > _MAX_SHOWN else "")
