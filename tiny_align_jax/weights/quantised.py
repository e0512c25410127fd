"""Matrices quantised while they are read, one tensor at a time; blocks of a GGUF file as they are.

Peak memory is the quantised result and a block of rows: no full-precision copy exists at any time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from tiny_align_jax.quantize import config as quantize_config
from tiny_align_jax.quantize import gguf_blocks, grouped, layout, pack
from tiny_align_jax.types import ConfigError, Rule, WeightsError
from tiny_align_jax.weights.convert import MakeStore, Store
from tiny_align_jax.weights.folder import ModelFolder
from tiny_align_jax.weights.gguf import GGUFSource
from tiny_align_jax.weights.source import TensorSource

GGUF_FILE = "model.gguf"
_BLOCK_VALUES = 1 << 22  # read and quantised at a time
EMBEDDING = "embedder/embedding"  # where every LLM family keeps its input table
HEAD = "head/weight"  # and its output matrix, unless that is the table again
_MATRIX_NAMES = ("weight", "kernel", "embedding")  # what `matmul` and `take` are called on
_MATRIX_TRANSFORMS = ("copy", "linear")  # 'linear' is a matrix that a float model wants transposed


def source_of(folder: ModelFolder, config: quantize_config.Config) -> TensorSource:
    """Where the weights are read from: the canonical file, or the GGUF file beside it.

    Raises:
        ConfigError: 'gguf' for a folder that has none.
    """
    if config.weights != quantize_config.GGUF:
        return folder.source()
    path = folder.path / GGUF_FILE
    if not path.is_file():
        raise ConfigError(
            f"quantize.weights='gguf', but {folder.path} has no {GGUF_FILE}; use 'int8' or 'int4', or "
            "an asset that comes as GGUF"
        )
    return GGUFSource(path)


def make_store(
    source: TensorSource, config: quantize_config.Config, dtype: Any, *, allocate: bool = True
) -> MakeStore:
    """Decides for each target of `convert` how it is held.

    Args:
        source: what will be read.
        config: how to quantise.
        dtype: what the model computes in; of rows looked up in a table.
        allocate: False gives stores whose value is shapes and dtypes: to be counted, not filled.
    """

    def make(sources: Sequence[str], target: jax.ShapeDtypeStruct, rule: Rule) -> Store | None:
        stacked = "(?P<layer>" in rule.source
        is_matrix = len(target.shape) - stacked == 2 and rule.transform in _MATRIX_TRANSFORMS
        if not is_matrix or str(rule.target).rpartition("/")[2] not in _MATRIX_NAMES:
            return None
        chosen = _choose(source, sources, str(rule.target), config)
        if chosen is None:
            return None
        shape = (*target.shape[:stacked], *source.shape(sources[0]))
        return _GroupedStore(*chosen, shape, dtype, allocate)

    return make


def table_rows(
    source: TensorSource, name: str, ids: Sequence[int] | np.ndarray, config: quantize_config.Config
) -> np.ndarray:
    """Rows of the input table as the quantised model looks them up, float32 [len(ids), D].

    Codes depend on their own row alone, so a few rows are quantised as in the whole table.

    Raises:
        WeightsError: an id outside the table.
    """
    rows = source.rows(name, ids).astype(np.float32)
    chosen = None if config.is_float else _choose(source, [name], EMBEDDING, config)
    if chosen is None or chosen[1]:  # rows of GGUF blocks came dequantised
        return rows
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        leaves = pack.quantise(rows, chosen[0])
        return np.asarray(grouped.from_leaves(leaves, chosen[0], np.float32).dequantise())


def _choose(
    source: TensorSource, names: Sequence[str], target: str, config: quantize_config.Config
) -> tuple[layout.Layout, bool] | None:
    """Layout of a target and whether it holds the file's own blocks; None for a float array."""
    width, kind = source.shape(names[0])[1], config.weights
    if isinstance(source, GGUFSource):
        if not any(source.is_quantised(name) for name in names):
            return None
        kinds = {source.kind(name) for name in names}
        if found := gguf_blocks.common_layout(kinds):
            return found, True
        stored = ", ".join(sorted(k.name for k in kinds))
        logging.warning("%s is stored as %s; held as int8, re-quantised", target, stored)
        kind = quantize_config.INT8
    elif target in (EMBEDDING, HEAD):
        kind = config.table
    if kind == quantize_config.FLOAT:
        return None
    found = layout.layout_of(width, kind, config)
    return found and (found, False)


class _GroupedStore:
    """A `Grouped` whose arrays are filled in place, a block of rows at a time."""

    def __init__(
        self,
        chosen: layout.Layout,
        is_native: bool,
        shape: tuple[int, ...],
        dtype: Any,
        allocate: bool,
    ):
        self._layout, self._is_native = chosen, is_native
        make: Any = np.empty if allocate else jax.ShapeDtypeStruct
        self._leaves = {name: make(s, kind) for name, (s, kind) in chosen.leaves(shape).items()}
        self.value = grouped.from_leaves(self._leaves, chosen, dtype)

    def put(self, source: TensorSource, name: str, layer: int | None, rule: Rule) -> None:
        num_rows, width = source.shape(name)
        step = max(1, _BLOCK_VALUES // width)
        for start in range(0, num_rows, step):
            rows = np.arange(start, min(start + step, num_rows))
            for leaf, values in self._block(source, name, rows).items():
                array = self._leaves[leaf] if layer is None else self._leaves[leaf][layer]
                array[start : start + len(rows)] = values

    def _block(self, source: TensorSource, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        if self._is_native and isinstance(source, GGUFSource):
            raw = source.raw(name, rows)
            return gguf_blocks.unpack(raw.data, raw.kind, self._layout)
        try:
            return pack.quantise(source.rows(name, rows), self._layout)
        except WeightsError as error:
            raise WeightsError(f"{name}: {error}") from error
