"""Which parameters train: path patterns split a tree into a trainable and a fixed half.

Example:
    tree     {'projector': {'norm': a, 'mlp': b}, 'objective': {'blank': c}}
    trainable=('.*/norm', 'objective/.*'), fixed=('projector/mlp',)
    gives    {'projector': {'norm': a, 'mlp': None}, 'objective': {'blank': c}}
    and      {'projector': {'norm': None, 'mlp': b}, 'objective': {'blank': None}}
None is an empty subtree to JAX, so gradients and optimizer states exist for the trainable half only.
"""

import re
from collections.abc import Sequence

import jax

from tiny_align_jax.types import ConfigError, PyTree


def path_name(path) -> str:
    """'/'-joined name of a key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_names(tree: PyTree) -> list[str]:
    """Names of all leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def partition(
    tree: PyTree, trainable: Sequence[str], fixed: Sequence[str] = ()
) -> tuple[PyTree, PyTree]:
    """Splits `tree` by patterns that must match whole names.

    Raises:
        ConfigError: lists every leaf that no pattern covers or both kinds cover, every pattern that
            matches nothing, and whether nothing trains at all.
    """
    names = leaf_names(tree)
    trained = {n for n in names if _matches(n, trainable)}
    kept = {n for n in names if _matches(n, fixed)}
    problems = [f"not covered: {n}" for n in names if n not in trained | kept]
    problems += [f"both trainable and fixed: {n}" for n in sorted(trained & kept)]
    problems += [
        f"pattern matches nothing: {p!r}"
        for p in (*trainable, *fixed)
        if not any(re.fullmatch(p, n) for n in names)
    ]
    if not trained:
        problems.append("nothing trains")
    if problems:
        raise ConfigError(
            "train.trainable and train.fixed must cover every parameter exactly once:\n  "
            + "\n  ".join(problems[:30])
            + f"\nparameters: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
        )

    def pick(chosen):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path_name(path) in chosen else None, tree
        )

    return pick(trained), pick(kept)


def merge(trainable: PyTree, fixed: PyTree) -> PyTree:
    """Undoes `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, fixed, is_leaf=lambda x: x is None
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(p, name) for p in patterns)
