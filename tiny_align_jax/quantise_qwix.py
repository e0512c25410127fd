"""The same LLM with its matrices held by qwix, for comparison; needs `pip install -e ".[qwix]"`.

Our own path (`quantize.grouped`) stays the one that runs use: it reads GGUF blocks as they are, quantises
while it reads, and needs no flax 0.12.
"""

import importlib.util
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from tiny_align_jax.types import Array, ConfigError, PyTree

_GROUP = 32
_MATRICES = ("weight", "embedding")


@flax.struct.dataclass
class QwixMatrix:
    """A `qwix.QArray` [out, in] where the decoder expects a quantised weight or table.

    Attributes:
        array: with a scale for every `_GROUP` inputs of a row (as many as divide its width).
    """

    array: Any

    def matmul(self, x: Array, dtype: Any = None) -> Array:
        """x [..., in] times the transposed matrix, in `dtype` (None: x's)."""
        import qwix

        rows = x.reshape(-1, x.shape[-1])
        contract = (((1,), (1,)), ((), ()))
        y = qwix.dot_general(rows, self.array, contract, preferred_element_type=jnp.float32)
        return y.reshape(*x.shape[:-1], -1).astype(x.dtype if dtype is None else dtype)

    def attend(self, x: Array) -> Array:
        """Scores of every row of a table: x [..., D] -> float32[..., V]."""
        return self.matmul(x, jnp.float32)

    def take(self, ids: Array) -> Array:
        """Rows `ids` of a table, dequantised, [..., D]."""
        import qwix

        ids = jnp.asarray(ids)
        rows = jax.tree.map(lambda leaf: jnp.take(leaf, ids.reshape(-1), axis=0), self.array)
        return qwix.dequantize(rows).reshape(*ids.shape, -1)


def is_installed() -> bool:
    """Whether qwix can be imported."""
    return importlib.util.find_spec("qwix") is not None


def quantise(params: PyTree, kind: str) -> PyTree:
    """Float parameters with every matrix as a `QwixMatrix`.

    Args:
        params: of an LLM; matrices [out, in], those of scanned layers with a leading axis.
        kind: 'int8' or 'int4', symmetric.

    Raises:
        ConfigError: qwix is not installed.
    """
    if not is_installed():
        raise ConfigError('qwix is not installed; pip install -e ".[qwix]" (needs flax 0.12)')
    import qwix

    def hold(path: Any, leaf: Any) -> Any:
        if path[-1].key not in _MATRICES or leaf.ndim < 2:
            return leaf
        rows = tuple(range(leaf.ndim - 1))
        how = {
            "channelwise_axes": rows,
            "tiled_axes": {leaf.ndim - 1: math.gcd(_GROUP, leaf.shape[-1])},
        }
        return QwixMatrix(qwix.quantize(jnp.asarray(leaf), jnp.dtype(kind), **how))

    return jax.tree_util.tree_map_with_path(hold, params)
