"""Times for transcripts that have none: our own CTC model, forced to say what the transcript says.

A whole recording is read window by window, and one Viterbi pass over all of it places every target
token; an utterance reaches from its first token to its last. Words that the projector's vocabulary
cannot spell are left out of the path: their neighbours hold the place.

Source: the most probable alignment under CTC (Graves et al., ICML 2006); reading long recordings in
overlapping windows is ours.
"""

import dataclasses
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import checks, transcribe
from tiny_align_jax.aligner import Aligner, project
from tiny_align_jax.data import audio, batching, vocabulary
from tiny_align_jax.features import pipeline
from tiny_align_jax.types import (
    SAMPLE_RATE_HZ,
    Array,
    AudioError,
    ConfigError,
    DataError,
    Utterance,
)

# Read on both sides of a window and thrown away: attention near a cut hears half a word.
MARGIN_S = 1.0
_IMPOSSIBLE = np.float32(-1e30)


@dataclasses.dataclass(frozen=True)
class Config:
    """What counts as aligned.

    Attributes:
        min_confidence: geometric mean of the target tokens' probabilities on the path, below which an
            utterance is dropped.
        padding_s: kept before the first and after the last token of an utterance, never into a
            neighbour: a token peaks inside its word.
        max_s: longer utterances are dropped; 0 for the projector's own window.
    """

    min_confidence: float = 0.1
    padding_s: float = 0.25
    max_s: float = 0.0

    def __post_init__(self):
        problems = checks.below(self, 0, "padding_s", "max_s")
        if not 0 <= self.min_confidence <= 1:
            problems.append(f"min_confidence={self.min_confidence}; expected 0 <= x <= 1")
        checks.refuse("forced alignment", problems)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """What became of one recording.

    Attributes:
        utterances: those that were found, timed.
        confidence: of each.
        dropped: reason of every other, by utterance id.
    """

    utterances: tuple[Utterance, ...]
    confidence: tuple[float, ...]
    dropped: dict[str, str]


def viterbi(
    log_probs_AS: np.ndarray, targets: np.ndarray, blank: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable CTC path through all targets.

    Args:
        log_probs_AS: log-probabilities of symbols at each audio token.
        targets: symbols to emit, in order.
        blank: the blank's symbol.

    Returns:
        (state of each audio token [A], log-probability of its symbol [A]); state 2 l + 1 emits target
        l, even states the blank.

    Raises:
        DataError: fewer audio tokens than the targets need.
    """
    symbols_S = np.full(2 * len(targets) + 1, blank)
    symbols_S[1::2] = targets
    emit_AS = log_probs_AS[:, symbols_S].astype(np.float32)
    may_skip_S = np.zeros(len(symbols_S), bool)
    may_skip_S[3::2] = symbols_S[3::2] != symbols_S[1:-2:2]
    needed = len(targets) + int((targets[1:] == targets[:-1]).sum())
    if len(emit_AS) < max(needed, 1):
        raise DataError(f"{len(emit_AS)} audio tokens cannot hold {needed} target tokens")
    score_S = np.full(len(symbols_S), _IMPOSSIBLE, np.float32)
    score_S[:2] = emit_AS[0, :2]
    step_AS = np.zeros(emit_AS.shape, np.int8)
    for a in range(1, len(emit_AS)):
        one = np.concatenate([[_IMPOSSIBLE], score_S[:-1]])
        two = np.concatenate([[_IMPOSSIBLE] * 2, score_S[:-2]])[: len(symbols_S)]
        options = np.stack([score_S, one, np.where(may_skip_S, two, _IMPOSSIBLE)])
        step_AS[a] = options.argmax(0)
        score_S = np.maximum(options.max(0) + emit_AS[a], _IMPOSSIBLE)
    states_A = np.empty(len(emit_AS), np.int64)
    last = len(symbols_S) - 1
    states_A[-1] = last if last == 0 or score_S[last] >= score_S[last - 1] else last - 1
    for a in range(len(emit_AS) - 1, 0, -1):
        states_A[a - 1] = states_A[a] - step_AS[a, states_A[a]]
    return states_A, emit_AS[np.arange(len(emit_AS)), states_A]


class ForcedAligner:
    """A projector trained with CTC, with its encoder loaded; compiles once."""

    def __init__(self, aligner: Aligner, config: Config | None = None):
        """Args: the aligner (the LLM is not needed) and what counts as aligned.

        Raises:
            ConfigError: the aligner's objective has no alignment to force.
        """
        if not hasattr(aligner.ear.objective, "log_probs"):
            raise ConfigError(
                f"objective {aligner.card['objective']['name']!r} gives no log-probabilities an audio "
                "token; forced alignment needs a projector trained with embedlink_ctc"
            )
        self._aligner, self._config = aligner, config or Config()
        self._decoder, self._encoder = transcribe.make_encoder(aligner)
        self._window_samples = self._decoder.window_samples
        self._probs = jax.jit(self._log_probs)

    def __call__(self, audio_path: str | Path, utterances: Sequence[Utterance]) -> Aligned:
        """Times the utterances of one recording.

        Args:
            audio_path: the recording.
            utterances: what is said in it, in order, by anybody.

        Raises:
            AudioError: a recording that cannot be read.
        """
        dropped: dict[str, str] = {}
        spelled: list[tuple[Utterance, np.ndarray]] = []
        for utterance in utterances:
            rows = self._known_rows(utterance.text)
            if len(rows):
                spelled.append((utterance, rows))
            else:
                dropped[utterance.utterance_id] = "no word that the projector's vocabulary spells"
        if not spelled:
            return Aligned((), (), dropped)
        targets = np.concatenate([rows for _, rows in spelled])
        needed_rows, symbols = np.unique(targets, return_inverse=True)
        log_probs_AS, token_s = self.read(audio_path, needed_rows)
        try:
            states_A, path_A = viterbi(log_probs_AS, symbols, blank=len(needed_rows))
        except DataError as error:
            reason = f"the recording is too short for its transcript ({error})"
            return Aligned((), (), dropped | {u.utterance_id: reason for u, _ in spelled})
        spans = _spans(states_A, path_A, [len(rows) for _, rows in spelled])
        return self._judge([u for u, _ in spelled], spans, token_s, len(states_A), dropped)

    def read(self, audio_path: str | Path, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Log-probabilities of `rows` and, last, the blank over a whole recording, and seconds a token."""
        waveform_S = audio.read_audio(audio_path, max_s=None)
        window = self._window_samples
        if len(waveform_S) <= window:
            return self._read_window(waveform_S, rows)
        margin = min(round(MARGIN_S * SAMPLE_RATE_HZ), window // 8)
        hop = window - 2 * margin
        pieces, token_s = [], 0.0
        for start in range(0, len(waveform_S), hop):
            first = max(start - margin, 0)
            heard_AS, window_token_s = self._read_window(waveform_S[first : first + window], rows)
            # A short last window rounds its tokens; the first one is whole.
            token_s = token_s if pieces else window_token_s
            skip, keep = (round(n / SAMPLE_RATE_HZ / token_s) for n in (start - first, hop))
            pieces.append(heard_AS[skip : skip + keep])
        return np.concatenate(pieces), token_s

    def _read_window(self, waveform_S: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
        module, config = self._decoder.module, self._decoder.config
        inputs = module.preprocess(config, waveform_S, self._window_samples)
        decoded = pipeline.Decoded("", inputs, len(waveform_S), len(waveform_S))
        ((_, frames_TE),) = next(iter(self._encoder([decoded])))
        if isinstance(frames_TE, AudioError):
            raise frames_TE
        longest = module.num_frames(config, self._window_samples)
        length = batching.bucket_lengths(np.array([longest]), 1)[0]
        padded_TE = np.pad(frames_TE, ((0, length - len(frames_TE)), (0, 0)))
        log_probs_AV, mask_A = jax.device_get(
            self._probs(self._aligner.params, self._aligner.frozen, padded_TE, len(frames_TE))
        )
        columns = np.append(rows, log_probs_AV.shape[1] - 1)
        tokens = int(mask_A.sum())
        seconds = len(waveform_S) / SAMPLE_RATE_HZ
        return log_probs_AV[:tokens, columns], seconds / max(tokens, 1)

    def _log_probs(self, params, frozen, features_TE: Array, num_frames) -> tuple[Any, Any]:
        ear = self._aligner.ear
        num_frames_B = jnp.reshape(num_frames, (1,))
        audio_BAD, audio_mask_BA = project(ear, params, features_TE[None], num_frames_B)
        log_probs_BAV: Any = ear.objective.log_probs(
            ear.objective_config, params["objective"], audio_BAD, frozen
        )
        return log_probs_BAV[0], audio_mask_BA[0]

    def _known_rows(self, text: str) -> np.ndarray:
        """Rows of the words that the vocabulary spells."""
        found = []
        for word in vocabulary.spoken_form(text).split():
            try:
                found.append(self._aligner.vocabulary.encode(word))
            except DataError:
                continue
        return np.concatenate(found) if found else np.zeros(0, np.int32)

    def _judge(
        self,
        utterances: Sequence[Utterance],
        spans: Sequence[tuple[int, int, float]],
        token_s: float,
        num_tokens: int,
        dropped: dict[str, str],
    ) -> Aligned:
        """Adds the padding, and drops what is unsure or too long."""
        config = self._config
        window_s = self._window_samples / SAMPLE_RATE_HZ
        max_s = min(config.max_s or window_s, window_s)
        kept, sure = [], []
        for i, (utterance, (first, last, confidence)) in enumerate(
            zip(utterances, spans, strict=True)
        ):
            before = spans[i - 1][1] + 1 if i else 0
            after = spans[i + 1][0] if i + 1 < len(spans) else num_tokens
            start_s = max(first * token_s - config.padding_s, before * token_s)
            end_s = min((last + 1) * token_s + config.padding_s, after * token_s)
            if confidence < config.min_confidence:
                reason = f"confidence {confidence:.3f} is below {config.min_confidence}"
                dropped[utterance.utterance_id] = reason
            elif end_s - start_s > max_s:
                reason = f"{end_s - start_s:.1f} s long, the limit is {max_s:.1f} s"
                dropped[utterance.utterance_id] = reason
            else:
                kept.append(dataclasses.replace(utterance, start_s=start_s, end_s=end_s))
                sure.append(confidence)
        return Aligned(tuple(kept), tuple(sure), dropped)


def _spans(
    states_A: np.ndarray, path_A: np.ndarray, lengths: Sequence[int]
) -> list[tuple[int, int, float]]:
    """(first audio token, last one, geometric mean probability of its targets) of each utterance."""
    label_A = np.where(states_A % 2 == 1, states_A // 2, -1)
    spans, start = [], 0
    for length in lengths:
        tokens = np.flatnonzero((label_A >= start) & (label_A < start + length))
        best = [path_A[label_A == label].max() for label in range(start, start + length)]
        spans.append((int(tokens[0]), int(tokens[-1]), float(np.exp(np.mean(best)))))
        start += length
    return spans


def manifest_rows(aligned: Aligned, chosen: Container[str]) -> list[dict]:
    """Rows for the `jsonl` corpus of the `chosen` utterance ids, with the confidence as a further field."""
    rows = []
    for utterance, confidence in zip(aligned.utterances, aligned.confidence, strict=True):
        if utterance.utterance_id not in chosen:
            continue
        row = {
            "id": utterance.utterance_id,
            "audio": str(Path(utterance.audio_path).resolve()),
            "text": utterance.text,
            "speaker": utterance.speaker_id,
            "start_s": round(utterance.start_s, 3),
            "end_s": round(float(utterance.end_s or 0), 3),
            "age": utterance.age,
            "sex": utterance.sex,
            "confidence": f"{confidence:.3f}",
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows
