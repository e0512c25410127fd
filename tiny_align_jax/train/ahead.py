"""Input that is made while the device works: a thread gathers the next group and sends it off."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def made_ahead(make: Callable[[T], U], items: Iterator[T]) -> Generator[U, None, None]:
    """`map(make, items)`, whose next result is being made while the caller has the last one.

    One ahead, no more: what waits takes memory, on the host or on the device. Ends with `items`; what `make` or
    `items` raise is raised here, and no thread outlives the iterator once it is closed.
    """

    def make_next() -> list[U]:
        return [make(item) for item in (next(items, end),) if item is not end]

    end: T = object()  # type: ignore[assignment]
    with ThreadPoolExecutor(1, thread_name_prefix="input") as pool:
        coming = pool.submit(make_next)
        while made := coming.result():
            coming = pool.submit(make_next)
            yield made[0]
