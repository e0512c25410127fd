"""What every reader offers: named tensors, one at a time, under Hugging Face's names."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tiny_align_jax.types import WeightsError


class TensorSource(Protocol):
    """Named tensors of a checkpoint, read one at a time, under Hugging Face's names."""

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """Dtype that `read` returns, without reading."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor; may be a read-only view of the file, so drop it when done."""
        ...

    def rows(self, name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows `ids` of a matrix, [len(ids), width], touching only those rows."""
        ...


def select_rows(
    name: str,
    shape: tuple[int, ...],
    ids: Sequence[int] | np.ndarray,
    take: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """`take(ids)` once `ids` are known to index rows of a matrix of `shape`.

    Raises:
        WeightsError: not a matrix, or an id outside it.
    """
    ids = np.asarray(ids, dtype=np.int64)
    if len(shape) != 2:
        raise WeightsError(
            f"rows of {name!r} asked for, but its shape is {shape}; expected a matrix"
        )
    wrong = ids[(ids < 0) | (ids >= shape[0])]
    if wrong.size:
        raise WeightsError(
            f"{name!r} has rows 0..{shape[0] - 1}; asked for {wrong[:5].tolist()}. "
            "Tokenizer and weights do not belong together?"
        )
    return take(ids)
