"""Utterances as padded arrays, of frames or of encoder inputs."""

from collections.abc import Sequence

import numpy as np

from tiny_align_jax.adapt.fit import Corpus

_FRAMES = 128


def frames_corpus(
    frames: Sequence[np.ndarray], targets: Sequence[np.ndarray], max_frames: int | None = None
) -> Corpus:
    """Utterances as padded arrays, whose lengths are multiples of 128, so that users share compiled programs."""
    num_frames = np.array([len(f) for f in frames], np.int32)
    length = max_frames or -(-int(num_frames.max()) // _FRAMES) * _FRAMES
    inputs = np.zeros((len(frames), length, frames[0].shape[1]), np.float16)
    for row, own in zip(inputs, frames, strict=True):
        row[: len(own)] = own
    return Corpus(inputs, num_frames, np.zeros_like(num_frames), *padded_targets(targets))


def padded_targets(targets: Sequence[np.ndarray], multiple: int = 16) -> tuple[np.ndarray, ...]:
    """Targets in one array, int32 [N, L], and how many each row has."""
    num_targets = np.array([len(t) for t in targets], np.int32)
    longest = -(-max(int(num_targets.max()), 1) // multiple) * multiple
    rows = np.zeros((len(targets), longest), np.int32)
    for row, own in zip(rows, targets, strict=True):
        row[: len(own)] = own
    return rows, num_targets
