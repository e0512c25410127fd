"""Shared types, the dimension key and the error classes.

Dimension key, used as array-name suffixes throughout the package:
    B batch, S audio samples, T encoder frames, A audio tokens (projector output), P prompt tokens,
    L target tokens, N total sequence, E encoder width, D LLM width, V rows of an embedding table,
    H heads, K head width.
Masks are boolean and True where a position is valid.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any

SAMPLE_RATE_HZ = 16_000


class TinyAlignError(Exception):
    """Base of every error a user can cause: the message names the value, the expectation, the fix."""


class ConfigError(TinyAlignError):
    """Unknown plug-in, unknown key, or a value that cannot work."""


class AudioError(TinyAlignError):
    """Audio that cannot be read or used (missing, empty, truncated, silent, non-finite, too long)."""


class DataError(TinyAlignError):
    """A corpus, manifest or transcript that is malformed."""


class AssetError(TinyAlignError):
    """Weights or voices that cannot be found, fetched or verified."""


class WeightsError(TinyAlignError):
    """Checkpoint tensors that do not match the model."""


class CacheError(TinyAlignError):
    """A feature cache that is stale, corrupt or cannot be written."""


class CheckpointError(TinyAlignError):
    """A training checkpoint that is missing, corrupt or made with other frozen parts."""


class BudgetError(TinyAlignError):
    """A run that would not fit the device's memory; nothing was loaded."""


class NonFiniteLossError(TinyAlignError):
    """Training met a NaN or infinite loss; the message names the step and the utterances."""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One stretch of speech by one speaker with its transcript.

    Attributes:
        utterance_id: unique in its corpus.
        audio_path: file readable by `data.audio.read_audio`.
        text: transcript as the corpus gives it (normalisation happens later, in one place).
        speaker_id: unique in its corpus.
        start_s: where the utterance starts in the file, seconds.
        end_s: where it ends; None means the end of the file.
        age: speaker's age in years, if the corpus says.
        sex: 'f' or 'm', if the corpus says.
        extra: any further columns of the corpus.
        distortion: what is done to the samples before they are encoded, see `data.distortion`.
    """

    utterance_id: str
    audio_path: str
    text: str
    speaker_id: str
    start_s: float = 0.0
    end_s: float | None = None
    age: float | None = None
    sex: str | None = None
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    distortion: str = ""


@flax.struct.dataclass
class Batch:
    """One training or evaluation batch; rows past the data have `weight_B` 0.

    Attributes:
        features_BTE: cached encoder frames, float16 or float32.
        num_frames_B: valid frames a row, int32.
        target_ids_BL: indices into the rows of `Table` (not LLM ids), int32, 0 where invalid.
        num_targets_B: valid targets a row, int32.
        weight_B: 1.0 for a real row, 0.0 for a fill row.
        index_B: row number in the data set (names the utterance in errors), int32.
    """

    features_BTE: Array
    num_frames_B: Array
    target_ids_BL: Array
    num_targets_B: Array
    weight_B: Array
    index_B: Array


@flax.struct.dataclass
class Frozen:
    """What an objective reads but never trains; always an ARGUMENT of jitted functions.

    Attributes:
        table_VD: rows of the LLM's input embeddings that the vocabulary uses, float32, as the first
            layer sees them. Row 0 is the end-of-text token.
        llm: parameters of the whole LLM, only for objectives whose NEEDS names 'llm'.
        prefix_ids_P: prompt before the audio (LLM ids), only with 'llm'.
        suffix_ids_P: prompt after the audio (LLM ids), only with 'llm'.
        row_ids_V: LLM id of every row of `table_VD`, int32.
        slot_ids_V: LLM id of every row's text with a leading space, as it begins a transcript inside
            the prompt, int32; only with 'llm', whose rows begin an answer.
        constants: what the objective's `prepare` makes of the other fields once a run; None if nothing
            was prepared, and a step works it out.
    """

    table_VD: Array
    row_ids_V: Array
    llm: PyTree = None
    prefix_ids_P: Array | None = None
    suffix_ids_P: Array | None = None
    slot_ids_V: Array | None = None
    constants: PyTree = None


@flax.struct.dataclass
class Reading:
    """What an objective's `read` makes of projected audio.

    Attributes:
        rows_BA: index of the read table row at each audio token, int32.
        keep_BA: True where the audio token carries text (not blank, repeat, padding or end).
        soft_BAD: probability-weighted mean of table rows at each audio token.
        score_B: log-probability (or negative distance) of the reading.
    """

    rows_BA: Array
    keep_BA: Array
    soft_BAD: Array
    score_B: Array


@runtime_checkable
class QuantisedWeight(Protocol):
    """What may stand in a parameter tree where a frozen weight matrix is expected."""

    def matmul(self, x: Array, dtype: Any = None) -> Array:
        """x [..., in] times the matrix, summed in float32, [..., out] in `dtype` (None: x's)."""
        ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a family's weight-mapping table (`PARAM_MAP`), run by `weights.convert`.

    Attributes:
        source: regular expression that fully matches a checkpoint's tensor name. A group named
            `layer` picks the slot on the leading axis of a stacked (scanned) target.
        target: '/'-joined path in our parameter tree; None means known and deliberately not used.
        transform: 'copy', 'linear' ([out, in] -> [in, out]), 'conv1d' ([out, in, width] ->
            [width, in, out]), or a function of one numpy array.
    """

    source: str
    target: str | None
    transform: str | Callable[[np.ndarray], np.ndarray] = "copy"
