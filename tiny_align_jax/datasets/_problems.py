"""What is wrong with a corpus, collected so that one run shows everything there is to mend."""

import dataclasses
from collections.abc import Sequence

from tiny_align_jax.types import DataError

# A corpus with a systematic fault has thousands of bad lines; this many tell what the fault is.
MAX_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Problem:
    """One fault of a corpus file.

    Attributes:
        path: the file.
        line: 1-based line, or 0 for the file as a whole.
        message: what is wrong, what was expected and the fix.
    """

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return (
            f"{self.path}:{self.line}: {self.message}"
            if self.line
            else f"{self.path}: {self.message}"
        )


def raise_if_any(problems: Sequence[Problem], what: str) -> None:
    """Raises one DataError that lists the problems, the first `MAX_SHOWN` in full."""
    if not problems:
        return
    shown = "\n".join(f"  {problem}" for problem in problems[:MAX_SHOWN])
    more = len(problems) - MAX_SHOWN
    rest = f"\n  ... and {more} more" if more > 0 else ""
    raise DataError(f"{what}: {len(problems)} problem(s)\n{shown}{rest}")
