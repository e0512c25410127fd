"""Matrices that read the same input, joined once: queries, keys and values, and gate and up.

XLA joins products that share an input, too, and on a GPU it does so inside the loop: from two tokens a step on,
every token waits for a copy of these matrices, 1.3 GB of Llama-3.2-1B's 2.5 (compiled program, JAX 0.11).
Joined before, they are read once, by one product instead of two or three.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.quantize import grouped
from tiny_align_jax.quantize.grouped import Grouped
from tiny_align_jax.types import PyTree

# Parts in the order in which the modules of `llms` split the joined one.
_GROUPS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def for_decoding(params: PyTree) -> PyTree:
    """An LLM's parameters on the device; everywhere but on a CPU joined, and codes in words: it is faster."""
    if jax.default_backend() == "cpu":
        return jax.device_put(params)
    return join(grouped.words(params))


def place_quantised(value: Any) -> Any:
    """A quantised matrix goes to the device as it is loaded, so that the host never holds them all.

    Floats wait for `join`; on a CPU everything stays where it is.
    """
    if jax.default_backend() == "cpu" or not isinstance(value, Grouped):
        return value
    # Waited for: else the host holds what has not been sent yet.
    return jax.block_until_ready(jax.device_put(grouped.words(value)))


def join(params: PyTree) -> PyTree:
    """An LLM's parameters on the device, with joined matrices and biases.

    Quantised matrices and those with adapters stay apart. One group's parts are held twice at a time.
    """
    if not isinstance(params, Mapping):
        return jax.device_put(params)
    whole = dict(params)
    for name, parts in _GROUPS.items():
        if all(part in whole for part in parts) and _plain([whole[part] for part in parts]):
            found = [whole.pop(part) for part in parts]
            # Weights are [layers, out, in], biases [layers, out].
            axes = {"weight": -2, "bias": -1}
            whole[name] = {
                key: jnp.concatenate([jnp.asarray(part[key]) for part in found], axis=axes[key])
                for key in found[0]
            }
    return {key: value if key in _GROUPS else join(value) for key, value in whole.items()}


def _plain(parts: list[Any]) -> bool:
    """Whether all are arrays, with the same names and dtypes."""
    leaves = [part.get(key) for part in parts for key in parts[0]]
    if not all(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves):
        return False
    kinds = [{key: part[key].dtype for key in part} for part in parts]
    return all(kind == kinds[0] for kind in kinds)
