"""Arrays arrive whole, however little is sent at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import placing
from tiny_align_jax.train import setup

PIECE_BYTES = 64


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    return {
        "table": rng.normal(size=(11, 4)).astype(np.float32),  # pieces of 4 rows
        "codes": rng.integers(0, 255, (3, 100), np.uint8),  # a row is larger than a piece
        "scale": np.float32(2.0) * np.ones((), np.float32),
        "half": rng.normal(size=(40,)).astype(jnp.bfloat16),
        "there": jnp.arange(3),
    }


def test_what_arrives_is_what_was_sent(tree):
    placed = placing.put_in_pieces(tree, PIECE_BYTES)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    jax.tree.map(np.testing.assert_array_equal, placed, tree)
    assert jax.tree.map(lambda x: x.dtype, placed) == jax.tree.map(lambda x: x.dtype, tree)
    assert placed["there"] is tree["there"]


def test_little_is_under_way_at_once(tree, monkeypatch):
    sent, fill, device_put = [], placing.fill, jax.device_put

    def watched_fill(whole, part, start):
        sent.append(part.nbytes)
        return fill(whole, part, start)

    monkeypatch.setattr(placing, "fill", watched_fill)
    monkeypatch.setattr(jax, "device_put", lambda x: sent.append(x.nbytes) or device_put(x))
    placing.put_in_pieces(tree, PIECE_BYTES)
    assert max(sent) == 100  # that one row


def test_a_cpu_takes_over_what_lies_well(tree, monkeypatch):
    monkeypatch.setattr(placing, "put_in_pieces", None)
    jax.tree.map(np.testing.assert_array_equal, placing.put(tree), tree)


def test_rows_are_measured_in_blocks_as_in_one(monkeypatch):
    table_VD = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    want = float(np.sqrt(np.mean(np.square(table_VD))))
    assert setup._rms(table_VD) == want  # trained projectors depend on it to the last bit
    monkeypatch.setattr(setup, "_ROWS_AT_ONCE", 16)
    assert setup._rms(table_VD) == pytest.approx(want, rel=1e-6)
