"""Pictures of a sweep: learning curves, quality against seconds and parameters, bars with intervals."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from tiny_align_jax import report
from tiny_align_jax.report import Row
from tiny_align_jax.report_tables import TITLES

_COLORS = plt.get_cmap("tab10").colors + plt.get_cmap("Set2").colors  # type: ignore[attr-defined]
_MARKERS = "osD^vP*Xh<>"
_MAX_NAME = 52
_MAX_NAMED = 24  # rows that a legend can name


def write(rows: Sequence[Row], folder: Path, metric: str = "wer") -> dict[str, Path]:
    """All pictures that the rows have data for, as PNG; paths by title."""
    scored = [row for row in rows if metric in row.scores]
    styles = _styles(rows, metric)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    drawings = {
        "Bars with intervals": (bars, scored),
        "Learning curves": (learning_curves, [r for r in rows if r.entries]),
        "Quality against training seconds": (
            against_seconds,
            [r for r in rows if (metric in r.scores and r.train_s) or _was_stopped(r, metric)],
        ),
        "Quality against parameters": (against_parameters, [r for r in scored if r.params]),
    }
    for title, (draw, chosen) in drawings.items():
        if not chosen:
            continue
        figure = draw(chosen, metric, styles)
        path = folder / (title.lower().replace(" ", "_") + ".png")
        figure.savefig(path, dpi=130, bbox_inches="tight")
        plt.close(figure)
        found[title] = path
    return found


def bars(rows: Sequence[Row], metric: str, styles: dict[str, int]):
    """A bar a row, best on top, with the interval over speakers (thin) and over seeds (thick)."""
    sign = 1 if metric in report.LOWER_IS_BETTER else -1
    ordered = sorted(rows, key=lambda r: -sign * r.scores[metric].mean)
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.42 * len(rows)))
    for y, row in enumerate(ordered):
        score = row.scores[metric]
        axis.barh(y, score.mean, color=_color(styles, row), alpha=0.75, height=0.65)
        edge = score.mean
        if score.speakers:
            axis.plot([score.speakers.low, score.speakers.high], [y, y], color="black", lw=1.2)
            edge = max(edge, score.speakers.high)
        if score.half_width is not None:
            half = score.half_width
            axis.plot(
                [score.mean - half, score.mean + half], [y, y], color="black", lw=4, alpha=0.5
            )
            edge = max(edge, score.mean + half)
        axis.annotate(
            f"{score.mean:.3f}", (edge, y), (5, 0), textcoords="offset points", va="center", size=8
        )
    axis.set_yticks(range(len(ordered)), [_short(r.name) for r in ordered], fontsize=8)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.1)
    axis.set_ylim(-0.6, len(ordered) - 0.4)
    axis.set_xlabel(
        _title(metric) + "; thin: 95 % over speakers, thick: 95 % over seeds", fontsize=9
    )
    axis.grid(axis="x", alpha=0.3)
    return figure


def learning_curves(rows: Sequence[Row], metric: str, styles: dict[str, int]):
    """Loss by step, and validation scores where training was validated on its way."""
    validated = [r for r in rows if len(report.curve(r, metric)[0]) > 1]
    figure, axes = plt.subplots(1, 2 if validated else 1, figsize=(11 if validated else 7, 4.2))
    axes = np.atleast_1d(axes)
    for row in rows:
        for i, entry in enumerate(row.entries):
            steps, losses = np.array(entry.losses).reshape(-1, 2).T
            label = _label(styles, row) if i == 0 else None
            axes[0].plot(steps, losses, color=_color(styles, row), lw=1, alpha=0.8, label=label)
    axes[0].set(xlabel="step", ylabel="training loss (each objective's own scale)", yscale="log")
    for row in validated:
        steps, _, scores = report.curve(row, metric)
        axes[1].plot(steps, scores, marker=".", color=_color(styles, row))
        axes[1].set(xlabel="step", ylabel=f"validation {_title(metric)}")
    for axis in axes:
        axis.grid(alpha=0.3)
    _legend(axes[-1], axes[0])
    return figure


def against_seconds(rows: Sequence[Row], metric: str, styles: dict[str, int]):
    """The way of the validation score where it is known, and a mark at the end with its interval.

    A run that was stopped from outside has a dashed way and no mark.
    """
    figure, axis = plt.subplots(figsize=(8, 4.6))
    for row in rows:
        stopped, name = not row.entries, _label(styles, row)
        _, seconds, scores = report.curve(report.as_far_as_it_got(row), metric)
        if len(seconds) > 1:
            style = "--" if stopped else "-"
            label = f"{name} (stopped)" if stopped and name else None
            axis.plot(
                seconds, scores, style, lw=1, alpha=0.7, color=_color(styles, row), label=label
            )
        if not stopped:
            _mark(axis, row, row.train_s, metric, styles)
    axis.set(xlabel="training seconds (compilation left out)", ylabel=_title(metric), xscale="log")
    plain = ticker.FuncFormatter(lambda seconds, _: f"{seconds:g}")
    axis.xaxis.set_major_formatter(plain)
    axis.xaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axis.xaxis.set_minor_formatter(plain)
    axis.set_title("marks: the table's scores; lines: validation while training", fontsize=9)
    axis.grid(alpha=0.3, which="both")
    _legend(axis)
    return figure


def _was_stopped(row: Row, metric: str) -> bool:
    """No run of the row finished, but one was validated on its way."""
    return not row.entries and len(report.curve(report.as_far_as_it_got(row), metric)[0]) > 1


def against_parameters(rows: Sequence[Row], metric: str, styles: dict[str, int]):
    """A mark a row at its number of trainable parameters."""
    figure, axis = plt.subplots(figsize=(8, 4.6))
    for row in rows:
        _mark(axis, row, (row.params or 0) / 1e6, metric, styles)
    axis.set(xlabel="trainable parameters, millions", ylabel=_title(metric))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    _legend(axis)
    return figure


def _mark(axis, row: Row, x: float | None, metric: str, styles: dict[str, int]) -> None:
    score = row.scores[metric]
    error = None
    if score.speakers:
        bounds = [score.mean - score.speakers.low, score.speakers.high - score.mean]
        error = np.maximum(np.array(bounds)[:, None], 0)
    marker = _MARKERS[styles.get(row.name, 0) % len(_MARKERS)]
    color, label = _color(styles, row), _label(styles, row)
    axis.errorbar([x], [score.mean], error, fmt=marker, color=color, capsize=2, label=label)


def _styles(rows: Sequence[Row], metric: str) -> dict[str, int]:
    """A number for the colour and mark of each row; of many rows the best few alone, the rest are grey."""
    if len(rows) <= _MAX_NAMED:
        return {row.name: i for i, row in enumerate(rows)}
    sign = 1 if metric in report.LOWER_IS_BETTER else -1
    scored = sorted(
        (r for r in rows if metric in r.scores), key=lambda r: sign * r.scores[metric].mean
    )
    return {row.name: i for i, row in enumerate(scored[: _MAX_NAMED // 2])}


def _legend(axis, source=None) -> None:
    """Right of `axis`, with the marks of `source`."""
    axis.legend(
        *(source or axis).get_legend_handles_labels(),
        fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
    )


def _color(styles: dict[str, int], row: Row):
    return _COLORS[styles[row.name] % len(_COLORS)] if row.name in styles else "lightgrey"


def _label(styles: dict[str, int], row: Row) -> str | None:
    return _short(row.name) if row.name in styles else None


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _title(metric: str) -> str:
    better = "lower" if metric in report.LOWER_IS_BETTER else "higher"
    return f"{TITLES[metric]} ({better} is better)"
