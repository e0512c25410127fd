"""Peaks by moments, what a budget has to hold, and what a refusal says."""

import pytest

from tiny_align_jax.memory import budget
from tiny_align_jax.memory.budget import Config, Part, Stage
from tiny_align_jax.types import BudgetError, ConfigError

STAGE = Stage(
    "training",
    "batch 4",
    (
        Part("process", 0, 100),
        Part("weights", 50, 0),
        Part("weights, as read", 0, 50, "load"),
        Part("mapped file", 0, 1000, reclaimable=True),
        Part("temporaries", 30, 0, "train"),
        Part("batch", 10, 10, "train"),
    ),
)
GPU = Config(platform="gpu", budget_bytes=85)
BOARD = Config(name="board", platform="gpu", budget_bytes=199, shared=True)


def test_a_peak_is_that_of_the_worst_moment():
    assert STAGE.device == budget.Peak(50 + 30 + 10, "train")
    assert STAGE.host == budget.Peak(1100 + 50, "load")
    assert STAGE.total == budget.Peak(1150 + 50, "load")  # load and train draw level: 50 each


def test_a_budget_holds_the_device_or_both_and_no_mapped_files():
    assert STAGE.needed(GPU).num_bytes == 90
    assert STAGE.needed(BOARD).num_bytes == 200
    assert STAGE.needed(Config(platform="cpu")).num_bytes == 200


def test_what_does_not_fit_is_refused_with_numbers_and_advice():
    asked = []
    with pytest.raises(BudgetError) as error:
        budget.require_fits(BOARD, [STAGE], lambda stage: asked.append(stage) or "Try batch 1.")
    message = str(error.value)
    assert asked == [STAGE]
    for word in ("'board'", "training", "batch 4", "weights", "Try batch 1."):
        assert word in message


def test_what_fits_passes_and_no_budget_is_no_limit():
    def no_advice(stage):
        raise AssertionError("advice costs compilations")

    budget.require_fits(Config(platform="gpu", budget_bytes=90), [STAGE], no_advice)
    budget.require_fits(Config(platform="gpu"), [STAGE], no_advice)


def test_table_shows_parts_peaks_and_verdict():
    text = budget.table([STAGE], GPU)
    for word in ("weights, as read (load)", "mapped file", "peak", "DOES NOT FIT"):
        assert word in text
    assert "DOES NOT FIT" not in budget.table([STAGE], Config(platform="gpu", budget_bytes=90))


@pytest.mark.parametrize("values", [{"platform": "tpu"}, {"budget_bytes": -1}])
def test_impossible_devices_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Config(**values)
