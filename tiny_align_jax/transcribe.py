"""One recording: audio file -> frames -> what was heard -> the LLM's answer, with timings.

Nothing of the recording is kept: its frames go through the same stages as the corpus's, but not into
the feature cache.
"""

import dataclasses
import os
import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from tiny_align_jax import decode, reading
from tiny_align_jax.aligner import Aligner, Hearing, check_snap
from tiny_align_jax.data import batching, prompts
from tiny_align_jax.features import extract, pipeline
from tiny_align_jax.types import SAMPLE_RATE_HZ, AudioError, ConfigError, Utterance
from tiny_align_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What became of one recording.

    Attributes:
        heard: the reading, without the LLM unless a reader asks it; '' if nothing was heard.
        answer: the LLM's answer; None if it was not loaded.
        audio_s: length of the recording, seconds.
        seconds: wall time from opening the file until it was 'encoded', 'heard', the answer's
            'first_token' was there (absent without an answer), and it was 'done'.
    """

    heard: str
    answer: str | None
    audio_s: float
    seconds: dict[str, float]


class Transcriber:
    """An aligner with its encoder loaded, for recordings one at a time."""

    def __init__(
        self,
        aligner: Aligner,
        prompt: prompts.Config | None = None,
        settings: decode.Config | None = None,
        snap: str = "retokenize",
        reader: reading.Reader | None = None,
    ):
        """Args: the aligner; prompt and generation (default: the run's own); how to snap; who reads.

        Raises:
            ConfigError: an unknown snap mode, one that a reader's text cannot have, or a prompt that
                the LLM cannot take.
            WeightsError: encoder weights that do not fit.
        """
        check_snap(snap)
        if reader and snap != "retokenize":
            raise ConfigError(f"snap={snap!r}: a reading with help is text, so 'retokenize' it")
        self._aligner, self._snap, self._reader = aligner, snap, reader
        self._responder = aligner.responder(prompt, settings) if aligner.llm else None
        self._decoder, self._encoder = make_encoder(aligner)

    def __call__(
        self,
        audio_path: str | os.PathLike,
        on_heard: Callable[[str], object] | None = None,
        on_piece: Callable[[str], object] | None = None,
    ) -> Transcript:
        """Hears a recording and, if the LLM is there, answers it.

        Args:
            audio_path: any file that `data.audio` reads.
            on_heard: called with the reading before the LLM begins.
            on_piece: called with each piece of the answer as it comes.

        Raises:
            AudioError: missing, empty, silent, damaged, not finite, or longer than the window.
        """
        start_s, seconds = time.monotonic(), {}

        def lap(stage: str) -> None:
            seconds[stage] = round(time.monotonic() - start_s, 4)

        decoded, frames_TE = self._encode(os.fspath(audio_path))
        lap("encoded")
        heard, vectors = self._read(frames_TE)
        lap("heard")
        if on_heard:
            on_heard(heard)
        answer = None
        if self._responder:
            pieces = []
            for piece in self._responder.stream(vectors):
                if not pieces:
                    lap("first_token")
                pieces.append(piece)
                if on_piece:
                    on_piece(piece)
            answer = "".join(pieces).strip()
        lap("done")
        return Transcript(heard, answer, decoded.num_samples / SAMPLE_RATE_HZ, seconds)

    def _encode(self, audio_path: str) -> tuple[pipeline.Decoded, np.ndarray]:
        recording = Utterance(audio_path, audio_path, text="", speaker_id="")
        decoded = self._decoder(audio_path, recording)
        ((_, frames),) = next(iter(self._encoder([decoded])))
        if isinstance(frames, AudioError):
            raise AudioError(f"{audio_path}: {frames}")
        return decoded, frames

    def _read(self, frames_TE: np.ndarray) -> tuple[str, np.ndarray]:
        """The text, and what the LLM gets of it (nothing if it is not there)."""
        llm, nothing = self._aligner.llm, np.zeros((0, 0), np.float32)
        if self._reader:
            text = self._reader.read([frames_TE])[0]
            return text, self._aligner.embed_text(text) if llm else nothing
        hearing = self._hear(frames_TE)
        return hearing.texts[0], self._aligner.snap(hearing, 0, self._snap) if llm else nothing

    def _hear(self, frames_TE: np.ndarray) -> Hearing:
        # Padded to a few lengths, so that recordings share compiled programs.
        length = batching.bucket_lengths(np.array([len(frames_TE)]), 1)[0]
        padded_TE = np.pad(frames_TE, ((0, length - len(frames_TE)), (0, 0)))
        return self._aligner.hear(padded_TE[None], np.array([len(frames_TE)], np.int32))


def make_encoder(
    aligner: Aligner, batch_size: int = 1
) -> tuple[pipeline.Decoder, pipeline.BatchEncoder]:
    """The frozen encoder that the aligner's projector was trained with.

    Args:
        aligner: names the encoder.
        batch_size: recordings at a time.

    Returns:
        What reads audio for it, and the encoder itself.

    Raises:
        WeightsError: encoder weights that do not fit.
    """
    card, folder = aligner.card["encoder"], aligner.encoder_folder
    dtype = jnp.dtype(card.get("dtype", "float32"))
    module, config = loading.encoder_config(folder)
    spec = extract.make_spec(
        module,
        config,
        loading.held_fingerprint(folder, aligner.held("encoder")),
        window_s=card["window_s"],
        layers=card["layers"],
        dtype=dtype,
    )
    decoder = pipeline.Decoder(module, config, spec.window_samples, truncate=False)
    encoder = pipeline.BatchEncoder(
        module,
        config,
        lambda: aligner.encoder_params(dtype),
        layers=spec.layers,
        batch_size=batch_size,
        dtype=dtype,
    )
    return decoder, encoder
