"""The search for the largest setting: right on lines, safe on curves, sparing with tries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_align_jax.memory.search import largest_fitting


@pytest.mark.parametrize("start", [1, 2, 7, 64])
@pytest.mark.parametrize(("budget_bytes", "best"), [(1000, 90), (109, 0), (110, 1), (10**6, 128)])
def test_a_line_is_solved_exactly(start, budget_bytes, best):
    tries = []

    def num_bytes(n):
        tries.append(n)
        return 100 + 10 * n

    assert largest_fitting(num_bytes, budget_bytes, start, limit=128) == best
    assert len(tries) == len(set(tries)) <= 5


@given(
    fixed=st.integers(0, 10**6),
    slope=st.integers(0, 10**4),
    square=st.integers(0, 50),
    start=st.integers(1, 200),
    budget_bytes=st.integers(0, 2 * 10**6),
)
def test_what_it_returns_fits(fixed, slope, square, start, budget_bytes):
    def num_bytes(n):
        return fixed + slope * n + square * n * n

    best = largest_fitting(num_bytes, budget_bytes, start, limit=256)
    assert best <= 256
    if best:
        assert num_bytes(best) <= budget_bytes
    else:
        assert num_bytes(1) > budget_bytes
