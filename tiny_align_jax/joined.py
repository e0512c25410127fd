"""Matrices that read the same input, joined once: queries, keys and values, and gate and up.

XLA joins products that share an input, too, and on a GPU it does so inside the loop: from two tokens a step on,
every token waits for a copy of these matrices, 1.3 GB of Llama-3.2-1B's 2.5 (compiled program, JAX 0.11).
Joined before, they are read once, by one product instead of two or three.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import placing
from tiny_align_jax.quantize import grouped
from tiny_align_jax.quantize.grouped import Grouped
from tiny_align_jax.types import PyTree

# Parts in the order in which the modules of `llms` split the joined one.
_ARRAYS = (np.ndarray, jax.Array, jax.ShapeDtypeStruct)
_GROUPS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def for_decoding(params: PyTree) -> PyTree:
    """An LLM's parameters on the device; everywhere but on a CPU joined, and codes in words: it is faster."""
    if jax.default_backend() == "cpu":
        return jax.device_put(params)
    return join(grouped.words(params))


def place_unjoined(name: str, value: Any) -> Any:
    """What is joined with nothing goes to the device as it is loaded, so that the host never holds all matrices.

    What is to be joined waits for it; on a CPU everything stays where it is.

    Args:
        name: 'layers/mlp/down/weight'.
        value: what stands there.
    """
    if jax.default_backend() == "cpu" or _waits(name.split("/")):
        return value
    return placing.put(grouped.words(value))


def join(params: PyTree) -> PyTree:
    """An LLM's parameters on the device, with joined matrices and biases.

    Those with adapters stay apart, and quantised ones of different layouts. Beside the result, the device holds one layer's
    part at a time (`part_bytes`).
    """
    return _walk(params, _joined, placing.put)


def shapes_for_decoding(params: PyTree) -> PyTree:
    """Shapes of what `for_decoding` makes of such shapes where it joins."""

    def joined_shape(parts: list[Any]) -> jax.ShapeDtypeStruct:
        num_layers, _, *rest = parts[0].shape
        rows = sum(part.shape[1] for part in parts)
        return jax.ShapeDtypeStruct((num_layers, rows, *rest), parts[0].dtype)

    return _walk(grouped.words(params), joined_shape, lambda leaf: leaf)


def _walk(
    params: PyTree, joined: Callable[[list[Any]], Any], place: Callable[[Any], Any]
) -> PyTree:
    if not isinstance(params, Mapping):
        return place(params)
    whole = dict(params)
    for name, parts in _GROUPS.items():
        if all(part in whole for part in parts) and _plain([whole[part] for part in parts]):
            found = [whole.pop(part) for part in parts]
            together = lambda *leaves: joined(list(leaves))  # noqa: E731
            whole[name] = jax.tree.map(together, *found)
            del found
    return {k: v if k in _GROUPS else _walk(v, joined, place) for k, v in whole.items()}


def part_bytes(params: PyTree) -> int:
    """Bytes of the largest layer of a matrix (or its shape) that `join` would join; 0 if there is none."""
    if not isinstance(params, Mapping):
        return 0
    sizes = [part_bytes(value) for value in params.values()]
    for parts in _GROUPS.values():
        if all(part in params for part in parts) and _plain([params[part] for part in parts]):
            leaves = jax.tree.leaves([params[part] for part in parts])
            sizes += [math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves]
    return max(sizes, default=0)


def loaded_bytes(params: PyTree) -> tuple[int, int]:
    """Bytes (of shapes) that wait on the host until all is loaded, and of the largest that `place_unjoined` sends."""
    waiting, sent = 0, [0]
    is_held = lambda node: isinstance(node, Grouped)  # noqa: E731
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_held):
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(node))
        if _waits(key.key for key in path):
            waiting += size
        else:
            sent.append(size)
    return waiting, max(sent)


def _waits(path: Iterable[str]) -> bool:
    return any(part in parts for part in path for parts in _GROUPS.values())


def _joined(parts: list[Any]) -> jax.Array:
    """Weights [layers, out, in], or biases [layers, out], one behind the other, filled in layer by layer."""
    num_layers, _, *rest = parts[0].shape
    whole = jnp.zeros((num_layers, sum(part.shape[1] for part in parts), *rest), parts[0].dtype)
    for layer in range(num_layers):
        row = 0
        for part in parts:
            start = (layer, row) + (0,) * len(rest)
            whole = placing.fill(whole, part[layer][None], start)
            row += part.shape[1]
        jax.block_until_ready(whole)  # else the device holds all layers that are on their way
    return whole


def _plain(parts: list[Any]) -> bool:
    """Whether all are arrays or quantised, of one structure, with equal dtypes and widths."""
    whole = jax.tree.leaves(parts, is_leaf=lambda node: not isinstance(node, Mapping | list))
    if not all(isinstance(node, (*_ARRAYS, Grouped)) for node in whole):
        return False
    if len({jax.tree.structure(part) for part in parts}) > 1:
        return False
    kinds = [[(leaf.dtype, *leaf.shape[2:]) for leaf in jax.tree.leaves(part)] for part in parts]
    return all(kind == kinds[0] for kind in kinds)
