"""Programs are dropped only where there are very many, and what is needed again comes back."""

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
