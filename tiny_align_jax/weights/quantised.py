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
from tiny_align_jax.types import ConfigError, PyTree, Rule, WeightsError
from tiny_align_jax.weights.convert import MakeStore, Store, empty
from tiny_align_jax.weights.folder import ModelFolder
from tiny_align_jax.weights.gguf import GGUFSource
from tiny_align_jax.weights.safetensors import named_leaves
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
        shape = _matrix_shape(target, rule)
        chosen = _choose(source, sources, str(rule.target), config) if shape else None
        if not shape or not chosen:
            return None
        return _GroupedStore(*chosen, shape, dtype, allocate)

    return make


def shapes_without_file(
    target_shapes: PyTree, rules: Sequence[Rule], config: quantize_config.Config, dtype: Any
) -> PyTree:
    """Shapes and dtypes of a model's parameters as `config` holds them, from those of its floats.

    For models of which nobody has a file here: plans, and benchmarks with random weights.

    Raises:
        ConfigError: 'gguf', which only a file can answer.
    """
    if config.weights == quantize_config.GGUF:
        raise ConfigError("the bytes of quantize.weights='gguf' stand in a file; none was given")
    by_target = {str(rule.target): rule for rule in reversed(rules)}

    def hold(name: str, leaf: jax.ShapeDtypeStruct) -> Any:
        shape = None if config.is_float else _matrix_shape(leaf, by_target[name])
        chosen = _own_layout(shape[-1], name, config) if shape else None
        if not shape or not chosen:
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return _GroupedStore(chosen, False, shape, dtype, allocate=False).value

    leaves = [hold(name, leaf) for name, leaf in named_leaves(target_shapes)]
    return jax.tree.unflatten(jax.tree.structure(target_shapes), leaves)


def _matrix_shape(target: jax.ShapeDtypeStruct, rule: Rule) -> tuple[int, ...] | None:
    """[..., out, in] as stored in files, of a matrix that may be quantised; None of anything else."""
    stacked = "(?P<layer>" in rule.source
    is_matrix = len(target.shape) - stacked == 2 and rule.transform in _MATRIX_TRANSFORMS
    if not is_matrix or str(rule.target).rpartition("/")[2] not in _MATRIX_NAMES:
        return None
    *lead, first, second = target.shape
    return (*lead, second, first) if rule.transform == "linear" else (*lead, first, second)


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
    width = source.shape(names[0])[1]
    if isinstance(source, GGUFSource):
        if not any(source.is_quantised(name) for name in names):
            return None
        kinds = {source.kind(name) for name in names}
        if found := gguf_blocks.common_layout(kinds):
            return found, True
        stored = ", ".join(sorted(k.name for k in kinds))
        logging.warning("%s is stored as %s; held as int8, re-quantised", target, stored)
    found = _own_layout(width, target, config)
    return found and (found, False)


def _own_layout(width: int, target: str, config: quantize_config.Config) -> layout.Layout | None:
    kind = config.table if target in (EMBEDDING, HEAD) else config.weights
    if config.weights == quantize_config.GGUF:
        kind = quantize_config.INT8
    return None if kind == quantize_config.FLOAT else layout.layout_of(width, kind, config)


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
        make: Any = empty if allocate else jax.ShapeDtypeStruct
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
