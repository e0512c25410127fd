"""The trained arrays side by side in two or three vectors, so that the optimizer is a few kernels.

Clipping and AdamW were about 110 of the 340 launches of an `embedlink` step on one H100, three and more an array:
its part of the gradient's norm, its two moments, itself. Packed they are one each, and a step reads every
gradient, moment and parameter once. The projector's arrays are slices, which XLA reads where it casts or
multiplies them. Packing is done once a dispatch, outside the loop over steps: checkpoints and everything else see
the usual tree.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax.train import optimizer
from tiny_align_jax.types import Array, PyTree


class Layout:
    """Where each array of a tree of trained parameters lies."""

    def __init__(self, trainable: PyTree, dtype: Any):
        """Lays out arrays: what is decayed of each part of the tree in a vector, all others in one.

        Args:
            trainable: the tree; shapes are enough.
            dtype: compute dtype of the projector, which is that of its matrices' gradients.
        """
        paths, self._tree = jax.tree_util.tree_flatten_with_path(trainable)
        self._shapes = [leaf.shape for _, leaf in paths]
        self._groups: dict[str, list[int]] = {}
        decays = jax.tree.leaves(optimizer.decays(trainable))
        for i, (path, _) in enumerate(paths):
            name = f"{path[0].key}/{optimizer.MATRICES}" if decays[i] else "vectors"
            self._groups.setdefault(name, []).append(i)
        self._dtypes = {f"projector/{optimizer.MATRICES}": dtype}
        self._packed_tree = jax.tree.structure(dict.fromkeys(self._groups, 0))

    def pack(self, tree: PyTree) -> dict[str, Array]:
        """A tree of this layout, as vectors."""
        flat = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
        return {
            name: jnp.concatenate([flat[i] for i in members])
            for name, members in self._groups.items()
        }

    def pack_gradients(self, tree: PyTree) -> dict[str, Array]:
        """The same, by way of the dtype in which gradients were made: the same numbers, half the bytes."""
        leaves = jax.tree.leaves(tree)
        for name, members in self._groups.items():
            for i in members:
                leaves[i] = leaves[i].astype(self._dtypes.get(name, leaves[i].dtype))
        packed = self.pack(jax.tree.unflatten(self._tree, leaves))
        return {name: vector.astype(jnp.float32) for name, vector in packed.items()}

    def unpack(self, vectors: dict[str, Array]) -> PyTree:
        """Undoes `pack`."""
        leaves: dict[int, Array] = {}
        for name, members in self._groups.items():
            start = 0
            for i in members:
                end = start + math.prod(self._shapes[i])
                leaves[i] = vectors[name][start:end].reshape(self._shapes[i])
                start = end
        return jax.tree.unflatten(self._tree, [leaves[i] for i in range(len(leaves))])

    def pack_state(self, state: Any) -> Any:
        """A `TrainState` whose parameters, moments and averages are packed."""
        return _change(state, self._tree, self.pack)

    def unpack_state(self, state: Any) -> Any:
        """Undoes `pack_state`."""
        return _change(state, self._packed_tree, self.unpack)


def layout(trainable: PyTree, dtype: Any) -> Layout | None:
    """The layout of a run's parameters on a GPU; else None: a CPU would copy every slice."""
    return Layout(trainable, dtype) if jax.default_backend() == "gpu" else None


def _change(state: Any, tree: Any, change: Any) -> Any:
    """`change` applied to every part of the state that is a `tree`."""

    def is_tree(part):
        return jax.tree.structure(part) == tree

    def changed(part):
        return jax.tree.map(lambda x: change(x) if is_tree(x) else x, part, is_leaf=is_tree)

    return dataclasses.replace(
        state,
        trainable=change(state.trainable),
        opt_state=changed(state.opt_state),
        average=changed(state.average),
    )
