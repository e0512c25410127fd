"""Training time to quality: our objective against one that trains through the LLM, told honestly.

Two ratios stand apart. A step's cost says what the LLM's presence costs; time to equal score says what a user
waits for. Where the other's best score stays below the paper's objective, which has no LLM in training
either, it has not learnt to be read: then no ratio of times is a headline, and the text says so.
"""

from tiny_align_jax import report
from tiny_align_jax.report import Entry, Row

METRIC = (
    "rouge1"  # what 'emerging' is judged by: a WER near 1 says little about which words are right
)


def tell(ours: Row, other: Row, paper: Row, metric: str = METRIC) -> str:
    """The race in words, a line a fact.

    Args:
        ours: trained without the LLM, validated on the way.
        other: trained through the LLM, likewise.
        paper: the paper's objective: what `other` has to beat to count.
        metric: of the validations.
    """
    stopped = [row.name for row in (ours, other, paper) if not row.entries]
    ours, other, paper = (report.as_far_as_it_got(row) for row in (ours, other, paper))
    lines = [_per_step(ours, other)]
    lines += [f"- {name} was stopped from outside; it counts as far as it got" for name in stopped]
    bests = {row.name: _best(row, metric) for row in (ours, other, paper)}
    if None in bests.values():
        missing = [name for name, found in bests.items() if found is None]
        return "\n".join([*lines, f"- no validation on the way of {', '.join(missing)}: no race"])
    for name, (score, seconds) in bests.items():  # type: ignore[misc]
        lines.append(f"- best validation {metric} of {name}: {score:.3f} after {seconds:.1f} s")
    sign = -1 if metric in report.LOWER_IS_BETTER else 1
    other_score, paper_score = bests[other.name][0], bests[paper.name][0]  # type: ignore[index]
    if sign * other_score < sign * paper_score:
        gap = f"{other_score:.3f} against {paper_score:.3f} of {paper.name}"
        lines.append(f"- end-to-end did not emerge: {gap}; no ratio of times as a headline")
    equal = report.seconds_to_equal(ours, other, metric)
    assert equal is not None  # both were validated
    score, seconds, ours_s = equal
    if ours_s is None:
        lines.append(f"- {ours.name} never reaches {score:.3f}, the best of {other.name}")
    elif ours_s == 0:
        lines.append(f"- {ours.name} is above {score:.3f} before its first step")
    else:
        lines.append(
            f"- time to {score:.3f}, the best of {other.name}: {seconds:.1f} s against {ours_s:.1f} s "
            f"of {ours.name}, {seconds / ours_s:.1f} times sooner"
        )
    return "\n".join(lines)


def _best(row: Row, metric: str) -> tuple[float, float] | None:
    """Best mean score on the way and its training seconds."""
    _, seconds, scores = report.curve(row, metric)
    if not len(scores):
        return None
    best = int(scores.argmin() if metric in report.LOWER_IS_BETTER else scores.argmax())
    return float(scores[best]), float(seconds[best])


def _ms_a_step(entry: Entry) -> float | None:
    """Of the whole run; of what was logged, where it was killed."""
    if entry.result:
        return 1e3 * entry.result["train_s"] / max(entry.result["step"], 1)
    step = max(entry.clock, default=0)
    return 1e3 * entry.clock[step] / step if step else None


def _per_step(ours: Row, other: Row) -> str:
    def ms(row: Row) -> float | None:
        return row.mean(_ms_a_step)

    a, b = ms(ours), ms(other)
    if not a or not b:
        return f"- a step: not both of {ours.name} and {other.name} were trained"
    return f"- a step: {b:.2f} ms of {other.name}, {a:.2f} ms of {ours.name}, ratio {b / a:.1f}"
