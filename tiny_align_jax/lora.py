"""Low-rank adapters on the LLM's attention (LoRA), as plain trees beside the frozen parameters.

A matrix W [out, in] of the attention becomes W + scale * up @ down with `down` [rank, in] and `up`
[out, rank]; `up` starts at zero, so training starts from the LLM as it is. In training the frozen matrix
is wrapped and never copied: anything with a `matmul` may stand where an LLM family expects a matrix. For
inference the sum is made once.

Source: Hu et al., "LoRA" (arXiv 2106.09685), with alpha = 2 * rank.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.types import Array, ConfigError, PyTree

# Matrices of an attention block as our LLM families name them; 'qkv' is the fused one.
TARGETS = ("q", "k", "v", "out", "qkv")
SCALE = 2.0  # alpha / rank
_DOWN, _UP = "down", "up"


@flax.struct.dataclass
class AdaptedWeight:
    """A frozen matrix with its adapter; stacked on the layers' axis like the matrix it stands for.

    Attributes:
        weight: [out, in], an array or a quantised weight.
        down: [rank, in].
        up: [out, rank].
    """

    weight: Any
    down: Array
    up: Array

    def matmul(self, x: Array, dtype: Any = None) -> Array:
        """x [..., in] times the adapted matrix transposed, [..., out] in `dtype` (None: x's)."""
        if hasattr(self.weight, "matmul"):
            frozen = self.weight.matmul(x)
        else:
            frozen = _product(x, self.weight)
        adapted = frozen + SCALE * _product(_product(x, self.down), self.up)
        return adapted if dtype is None else adapted.astype(dtype)


def init(key: Array, llm_params: PyTree, rank: int) -> PyTree:
    """Adapters of every attention matrix, nested as the LLM's parameters are.

    Raises:
        ConfigError: the LLM has no attention matrix by any of the known names.
    """
    paths = _paths(llm_params)
    if not paths:
        raise ConfigError(
            f"no attention matrix to adapt: none of attention/{{{','.join(TARGETS)}}}/weight"
        )
    tree: dict[str, Any] = {}
    for number, path in enumerate(paths):
        *stack, out_dim, in_dim = _get(llm_params, path).shape
        down = jax.random.normal(jax.random.fold_in(key, number), (*stack, rank, in_dim))
        up = jnp.zeros((*stack, out_dim, rank))
        _set(tree, path[:-1], {_DOWN: down / np.sqrt(in_dim), _UP: up})
    return tree


def attach(llm_params: PyTree, adapters: PyTree) -> PyTree:
    """The LLM's parameters with wrapped attention matrices; gradients flow to `adapters`."""
    return _replaced(llm_params, adapters, AdaptedWeight)


def merge(llm_params: PyTree, adapters: PyTree) -> PyTree:
    """The LLM's parameters with adapters added in; quantised matrices stay wrapped."""

    def add(weight: Any, down: Array, up: Array) -> Any:
        if hasattr(weight, "matmul"):
            return AdaptedWeight(weight, down, up)
        change = SCALE * jnp.einsum("...or,...ri->...oi", jnp.asarray(up), jnp.asarray(down))
        return (jnp.asarray(weight, jnp.float32) + change).astype(weight.dtype)

    return _replaced(llm_params, adapters, add)


def _replaced(llm_params: PyTree, adapters: PyTree, make) -> PyTree:
    """A copy of the tree (not of its arrays) with `make(weight, down, up)` at every adapter."""
    tree = _copy(llm_params)
    for path in _paths(llm_params):
        own = _get(adapters, path[:-1])
        _set(tree, path, make(_get(llm_params, path), own[_DOWN], own[_UP]))
    return tree


def _product(x: Array, weight: Array) -> Array:
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(
        x, jnp.asarray(weight).astype(x.dtype), contract, preferred_element_type=x.dtype
    )


def _paths(tree: PyTree, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Key paths of the attention's matrices, in order."""
    found = []
    for key in sorted(tree) if isinstance(tree, dict) else ():
        path = (*prefix, key)
        if key == "weight" and len(path) > 2 and path[-3] == "attention" and path[-2] in TARGETS:
            found.append(path)
        else:
            found += _paths(tree[key], path)
    return found


def _get(tree: PyTree, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _copy(tree: PyTree) -> PyTree:
    return {k: _copy(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
