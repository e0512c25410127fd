"""Which parameters train: every one exactly once, or an error that lists all that are not."""

import jax
import numpy as np
import pytest

from tiny_align_jax.train.partition import leaf_names, merge, partition
from tiny_align_jax.types import ConfigError

TREE = {
    "projector": {"norm": {"scale": np.ones(2)}, "mlp": {"kernel": np.ones((2, 3)), "bias": 1.0}},
    "objective": {"blank": np.zeros(2)},
}


def test_halves_are_the_tree_and_merge_undoes_it():
    trainable, fixed = partition(TREE, (".*norm/scale", "objective/.*"), ("projector/mlp/.*",))
    assert leaf_names(trainable) == ["objective/blank", "projector/norm/scale"]
    assert leaf_names(fixed) == ["projector/mlp/bias", "projector/mlp/kernel"]
    jax.tree.map(np.testing.assert_array_equal, merge(trainable, fixed), TREE)
    doubled = jax.tree.map(lambda x: 2 * x, trainable)  # None is no leaf to a gradient or optimizer
    assert merge(doubled, fixed)["projector"]["norm"]["scale"].tolist() == [2, 2]
    assert merge(doubled, fixed)["projector"]["mlp"]["bias"] == 1.0


def test_everything_and_an_objective_without_parameters():
    tree = {"projector": TREE["projector"], "objective": {}}
    trainable, fixed = partition(tree, (".*",))
    assert leaf_names(trainable) == leaf_names(tree) and leaf_names(fixed) == []
    assert merge(trainable, fixed) == tree


def test_patterns_match_whole_names():
    with pytest.raises(ConfigError, match="pattern matches nothing: 'projector'"):
        partition(TREE, (".*",), ("projector",))


def test_every_problem_is_listed():
    with pytest.raises(ConfigError) as error:
        partition(TREE, ("projector/.*", "encoder/.*"), (".*/bias", "lora"))
    assert str(error.value).splitlines()[1:] == [
        "  not covered: objective/blank",
        "  both trainable and fixed: projector/mlp/bias",
        "  pattern matches nothing: 'encoder/.*'",
        "  pattern matches nothing: 'lora'",
        "parameters: objective/blank, projector/mlp/bias, projector/mlp/kernel, projector/norm/scale",
    ]


def test_something_must_train():
    with pytest.raises(ConfigError, match="nothing trains"):
        partition(TREE, (), (".*",))
