"""Input made ahead."""

import threading

import pytest

from tiny_align_jax.train.ahead import made_ahead


def test_the_same_as_map():
    assert list(made_ahead(lambda x: 2 * x, iter(range(5)))) == [0, 2, 4, 6, 8]
    assert list(made_ahead(str, iter(()))) == []


def test_the_next_one_is_made_while_the_last_one_is_used_and_no_more():
    begun = [threading.Event() for _ in range(5)]

    def make(i):
        begun[i].set()
        return i

    results = made_ahead(make, iter(range(5)))
    assert next(results) == 0
    assert begun[1].wait(10)
    assert next(results) == 1 and begun[2].wait(10)
    assert not begun[3].is_set()
    results.close()


def test_errors_come_out_in_order_and_no_thread_stays():
    def make(i):
        if i == 2:
            raise OSError("torn frames")
        return i

    results = made_ahead(make, iter(range(5)))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="torn frames"):
        next(results)
    assert not [t for t in threading.enumerate() if t.name.startswith("input")]
