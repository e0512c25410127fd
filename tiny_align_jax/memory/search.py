"""The largest setting that fits a budget, in as few tries as possible: each may compile a program."""

from collections.abc import Callable


def largest_fitting(
    num_bytes: Callable[[int], int], budget_bytes: int, start: int, limit: int
) -> int:
    """The largest setting whose bytes are within the budget, or nearly; 0 if not even 1 is.

    Memory grows about linearly with a batch or a length, so a few calls settle it: a line through
    two settings gives the next one, and what is returned was itself asked for.

    Args:
        num_bytes: bytes of a setting; each call may compile a program.
        budget_bytes: what may be taken.
        start: a setting to begin with.
        limit: the largest of interest.
    """
    known = {n: num_bytes(n) for n in {1, max(start, 2)}}
    for _ in range(3):
        fitting = [n for n, size in known.items() if size <= budget_bytes]
        guess = _line(known, budget_bytes, limit)
        if guess in known or not guess:
            return max(fitting, default=0)
        known[guess] = num_bytes(guess)
    return max((n for n, size in known.items() if size <= budget_bytes), default=0)


def _line(known: dict[int, int], budget_bytes: int, limit: int) -> int:
    """Where the line through the two settings nearest to the budget meets it."""
    (a, bytes_a), (b, bytes_b) = sorted(known.items(), key=lambda x: abs(x[1] - budget_bytes))[:2]
    slope = (bytes_b - bytes_a) / (b - a)
    if slope <= 0:
        return limit
    return min(max(int(a + (budget_bytes - bytes_a) / slope), 0), limit)
