"""The timing module's rows, at a test's size."""

import argparse

import pytest

pytest.importorskip("torch")

from third_party.torch_baseline import timing
from tiny_align_jax import benchmark_sizes

pytestmark = pytest.mark.parity
SIZE = benchmark_sizes.find("tiny")


def arguments(case, **values):
    default = {
        "mode": "eager",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 0,
        "rows": 0,
        "remat": False,
        "repeats": 3,
        "budget_s": 0.0,
    }
    return argparse.Namespace(case=case, **default | values)


@pytest.mark.parametrize("case", ["embedlink", "embedlink_ctc", "next_token"])
def test_steps_run_at_the_benchmarks_shapes_and_learn_something_finite(case):
    row = timing.step(SIZE, arguments(case, rows=SIZE.seen_rows, remat=case == "next_token"))
    assert row["batch_size"] == 2 and row["rows"] == 64 and row["repeats"] == 3
    assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
    assert 0 < row["loss"] < 100 and row["trainable_params"] > 1000


def test_decoding_counts_tokens_of_all_rows():
    row = timing.decode(SIZE, arguments("decode", batch_size=3))
    assert row["tokens_per_s"] == pytest.approx(3e3 / row["median_ms"])
    assert row["prompt_ms"] > 0 and row["batch_size"] == 3


def test_decoding_has_no_graph_of_all():
    with pytest.raises(SystemExit, match="reduce-overhead"):
        timing.decode(SIZE, arguments("decode", mode="cuda-graph"))
