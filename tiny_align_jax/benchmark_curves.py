"""Pictures of `benchmark_scaling`'s rows: cost against one axis, one PNG an axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

PREFIX = "scaling_"
_LABELS = {
    "utterances": "utterances on the device",
    "length": "encoder frames of an utterance",
    "batch": "utterances a step",
    "width": "width of the LLM",
    "slots": "tokens in the key-value cache",
}


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """A picture for every axis that has points; paths written."""
    good = [row for row in rows if row["case"].startswith(PREFIX) and "x" in row["facts"]]
    axes = dict.fromkeys(row["case"].removeprefix(PREFIX) for row in good)
    paths = []
    for axis in axes:
        path = folder / f"{PREFIX}{axis}.png"
        figure = draw([row for row in good if row["case"] == PREFIX + axis], axis)
        figure.savefig(path, dpi=130, bbox_inches="tight")
        plt.close(figure)
        paths.append(path)
    return paths


def draw(rows: Sequence[Mapping[str, Any]], axis: str):
    """Time, and for training steps the memory of arrays, both logarithmic; dotted: in proportion to the axis."""
    has_memory = any("temporaries_mb" in row["facts"] for row in rows)
    figure, panels = plt.subplots(1, 1 + has_memory, figsize=(5 + 4.6 * has_memory, 3.8))
    panels = list(panels) if has_memory else [panels]
    for line in dict.fromkeys(row["facts"]["line"] for row in rows):
        points = sorted(
            (r for r in rows if r["facts"]["line"] == line), key=lambda r: r["facts"]["x"]
        )
        x = [p["facts"]["x"] for p in points]
        _line(panels[0], x, [1e3 * p["seconds"] for p in points], line)
        if has_memory:
            _line(panels[1], x, [p["facts"]["temporaries_mb"] for p in points], line)
        held = [p["facts"]["corpus_mb"] for p in points if "corpus_mb" in p["facts"]]
        if held:
            _line(panels[1], x, held, "frames of the corpus")
    ticks = sorted({row["facts"]["x"] for row in rows})
    for panel, label in zip(panels, ("milliseconds", "MB (steps: temporaries)"), strict=False):
        panel.set(xscale="log", yscale="log", xlabel=_LABELS[axis], ylabel=label)
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        low, high = panel.get_ylim()
        panel.set_ylim(low / 1.5, high * 1.5)
        panel.grid(alpha=0.3, which="both")
    for panel in panels:
        panel.plot([], [], color="grey", lw=0.8, ls=":", label="in proportion")
        panel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _line(panel, x: Sequence[float], y: Sequence[float], label: str) -> None:
    (drawn,) = panel.plot(x, y, marker="o", ms=4, label=label)
    panel.plot(x, [y[0] * at / x[0] for at in x], color=drawn.get_color(), lw=0.8, ls=":")
