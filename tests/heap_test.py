"""Programs are dropped only where there are very many, and what is needed again comes back."""

import mmap

import jax
import jax.numpy as jnp
import pytest

from tiny_align_jax import heap


def test_many_programs_are_dropped_and_compiled_again(monkeypatch):
    if not heap._MAPS.is_file():
        pytest.skip("only Linux counts memory maps")
    traces = []

    @jax.jit
    def double(x):
        traces.append(1)
        return 2 * x

    monkeypatch.setattr(heap, "_MANY_MAPS", 10**9)
    assert double(jnp.arange(3))[2] == 4 and not heap.drop_many_programs()
    assert double(jnp.arange(3))[2] == 4 and len(traces) == 1
    monkeypatch.setattr(heap, "_MANY_MAPS", 10)
    assert heap.drop_many_programs()
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
