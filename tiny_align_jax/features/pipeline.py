"""The two stages of extraction: decoding in threads, ahead of encoding in batches.

libsndfile and soxr let go of Python's lock, so threads decode in parallel and nothing is copied between
processes. The encoder is compiled for one shape; the frames of one batch are fetched while the next
one is computed.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import placing, programs
from tiny_align_jax.data import audio, distortion
from tiny_align_jax.features import cache
from tiny_align_jax.types import SAMPLE_RATE_HZ, Array, AudioError, PyTree, Utterance

# Largest value of float16: a few channels in the middle layers of trained encoders lie beyond it.
_LARGEST = float(jnp.finfo(jnp.float16).max)
# Utterances decoded ahead of the encoder, a worker: enough that a slow file does not stall it.
AHEAD = 8


class TooLongError(AudioError):
    """Audio longer than the encoder's window, under a policy that does not cut it."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One utterance ready for the encoder.

    Attributes:
        key: its cache key.
        inputs: `preprocess`'s output, of one shape for all utterances.
        num_samples: samples of audio in the window.
        full_samples: samples of audio before any truncation.
    """

    key: str
    inputs: np.ndarray
    num_samples: int
    full_samples: int


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Reads one utterance's audio and prepares it for the encoder; called in threads.

    Attributes:
        module: encoder plug-in.
        config: its Config.
        window_samples: length of the window.
        truncate: cut audio that is longer, instead of raising TooLongError.
    """

    module: ModuleType
    config: Any
    window_samples: int
    truncate: bool

    def __call__(self, key: str, utterance: Utterance) -> Decoded:
        window_s = self.window_samples / SAMPLE_RATE_HZ
        waveform_S = audio.read_audio(
            utterance.audio_path,
            utterance.start_s,
            utterance.end_s,
            max_s=max(window_s, audio.MAX_UTTERANCE_S),
        )
        waveform_S = distortion.apply(utterance.distortion, waveform_S)
        full_samples = len(waveform_S)
        if full_samples > self.window_samples and not self.truncate:
            raise too_long(utterance, full_samples, self.window_samples)
        waveform_S = waveform_S[: self.window_samples]
        if self.module.num_frames(self.config, len(waveform_S)) < 1:
            raise AudioError(
                f"{utterance.audio_path}: {len(waveform_S)} samples make no frame of this encoder"
            )
        inputs = self.module.preprocess(self.config, waveform_S, self.window_samples)
        return Decoded(key, inputs, len(waveform_S), full_samples)


def too_long(utterance: Utterance, num_samples: int, window_samples: int) -> TooLongError:
    """The error about an utterance that the window does not hold."""
    return TooLongError(
        f"{utterance.audio_path}: {num_samples / SAMPLE_RATE_HZ:.2f} s long, the window is "
        f"{window_samples / SAMPLE_RATE_HZ:.2f} s; raise encoder.window_s, or set features.too_long to "
        "'skip' or 'truncate'"
    )


def decode_ahead(
    todo: Mapping[str, Utterance], decoder: Decoder, num_workers: int
) -> Iterator[tuple[str, Decoded | AudioError]]:
    """Decodes in threads, yields in order, holds at most `AHEAD` utterances a worker."""
    pool = futures.ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    waiting: collections.deque = collections.deque()
    remaining = iter(todo.items())
    try:
        while True:
            for key, utterance in itertools.islice(remaining, num_workers * AHEAD - len(waiting)):
                waiting.append((key, pool.submit(decoder, key, utterance)))
            if not waiting:
                return
            key, future = waiting.popleft()
            try:
                yield key, future.result()
            except AudioError as error:
                yield key, error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class BatchEncoder:
    """Runs the encoder over decoded utterances, `batch_size` at a time.

    Attributes:
        compile_s: seconds spent on loading parameters and compiling so far.
    """

    def __init__(
        self,
        module: ModuleType,
        config: Any,
        params: PyTree | Callable[[], PyTree],
        *,
        layers: tuple[int, ...],
        batch_size: int,
        dtype: Any,
    ) -> None:
        self.compile_s = 0.0
        self._module = module
        self._config = config
        self._params = params
        self._layers = layers
        self._batch_size = batch_size
        self._encoder = module.Encoder(config, dtype)
        self._ready = False

    def __call__(
        self, decoded: Iterable[Decoded]
    ) -> Iterator[list[tuple[Decoded, np.ndarray | AudioError]]]:
        """Yields batches of utterances with their frames, float16 [T, dim], or what is wrong."""
        ahead: collections.deque = collections.deque()
        for batch in batched(decoded, self._batch_size):
            ahead.append((batch, self._dispatch(batch)))
            if len(ahead) > 1:
                yield self._fetch(*ahead.popleft())
        for batch, frames in ahead:
            yield self._fetch(batch, frames)

    def _dispatch(self, batch: list[Decoded]) -> tuple[jax.Array, jax.Array]:
        # The last batch is filled up with its own first row: one shape, one compilation.
        rows = batch + [batch[0]] * (self._batch_size - len(batch))
        inputs_B = np.stack([row.inputs for row in rows])
        num_samples_B = np.array([row.num_samples for row in rows], np.int32)
        if self._ready:
            return encode(self._encoder, self._layers, self._params, inputs_B, num_samples_B)
        start_s = time.monotonic()
        # No name for what was read: the host would hold it while the encoder is compiled.
        self._params = placing.put(self._params() if callable(self._params) else self._params)
        frames = encode(self._encoder, self._layers, self._params, inputs_B, num_samples_B)
        self._ready, self.compile_s = True, time.monotonic() - start_s
        return frames

    def _fetch(
        self, batch: list[Decoded], results: tuple[jax.Array, jax.Array]
    ) -> list[tuple[Decoded, np.ndarray | AudioError]]:
        frames_BTE, finite_BT = (np.asarray(result) for result in results)
        fetched = []
        for item, frames_TE, finite_T in zip(batch, frames_BTE, finite_BT, strict=False):
            count = self._module.num_frames(self._config, item.num_samples)
            good = bool(finite_T[:count].all())
            # A copy: a view would keep the whole padded batch in memory until the shard is full.
            frames = (
                frames_TE[:count].copy() if good else AudioError("the encoder gave NaN or infinity")
            )
            fetched.append((item, frames))
        return fetched


def batched(items: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


@programs.kept(num_static=2)
def encode(
    encoder: Any, layers: tuple[int, ...], params: PyTree, inputs_B: Array, num_samples_B: Array
) -> tuple[jax.Array, jax.Array]:
    """Frames [B, T, layers * E] in float16, and which of them are finite, [B, T]."""
    states = encoder.apply({"params": params}, inputs_B, num_samples_B, layers)
    frames_BTE = jnp.concatenate(states, axis=-1).astype(jnp.float32)
    finite_BT = jnp.isfinite(frames_BTE).all(axis=-1)
    return jnp.clip(frames_BTE, -_LARGEST, _LARGEST).astype(cache.STORE_DTYPE), finite_BT
