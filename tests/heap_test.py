"""Programs are dropped only where there are very many, and what is needed again comes back."""

import mmap

import jax
import jax.numpy as jnp
import pytest

from tiny_align_jax import heap


def test_many_programs_are_dropped_and_compiled_again():
    if not heap._MAPS.is_file():
        pytest.skip("only Linux counts memory maps")
    traces = []

    @jax.jit
    def double(x):
        traces.append(1)
        return 2 * x

    assert double(jnp.arange(3))[2] == 4 and not heap.drop_many_programs(many_maps=10**9)
    assert double(jnp.arange(3))[2] == 4 and len(traces) == 1
    assert heap.drop_many_programs(many_maps=10)
    assert double(jnp.arange(3))[2] == 4 and len(traces) == 2


def test_resident_memory_is_told_by_kind():
    before = heap.resident_bytes()
    if not before:
        pytest.skip("no /proc here")
    # Mapped anew: a large process would take numpy's from pages that it holds already.
    with mmap.mmap(-1, 16_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        kept.write(b"x" * len(kept))
        after = heap.resident_bytes()
    assert 12e6 < after["own"] - before["own"] < 64e6
    assert after["files"] > 1e6
