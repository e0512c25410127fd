"""The study for readers: a table, and pictures of who gains, at what age, from how much and how fast."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tiny_align_jax.adapt.study_run import FILE
from tiny_align_jax.data.splits import age_band

REPORT = "report.md"
_ALL, _BASE, _LLM = "all", "base", "base + LLM"
_BAND_COLORS = {"6-9": "tab:red", "10-15": "tab:orange", "adult": "tab:blue", "unknown": "gray"}


def write(folder: str | os.PathLike) -> str:
    """Writes report.md and the pictures that there is data for; returns the report's text."""
    found = json.loads((Path(folder) / FILE).read_text())
    lines = []
    if "choose" in found:
        lines += ["## Simulated users", "", *_chosen_tables(found["choose"]), ""]
    if "test" in found:
        lines += ["## Test users", "", *_test_tables(found["test"]), ""]
        for draw in (slopes, bands, sizes):
            figure = draw(found["test"])
            if figure is not None:
                figure.tight_layout()
                figure.savefig(Path(folder) / f"{draw.__name__}.png", dpi=130)
                plt.close(figure)
                lines += [f"![{draw.__name__}]({draw.__name__}.png)", ""]
    text = "\n".join(lines)
    (Path(folder) / REPORT).write_text(text + "\n")
    return text


def slopes(test: Mapping[str, Any]):
    """A line a speaker from before to after, and from before to the control."""
    errors = test.get("errors by speaker", {})
    if _ALL not in errors:
        return None
    words = np.array(test["words by speaker"])
    names = [n for n in (_BASE, _LLM, _ALL, _ALL + ", other's") if n in errors]
    values = np.array([np.array(errors[n]) / words for n in names])
    figure, axis = plt.subplots(figsize=(1.9 * len(names) + 1, 5))
    for u, age in enumerate(test["users"]["ages"]):
        axis.plot(values[:, u], color=_BAND_COLORS[age_band(age)], alpha=0.4, lw=1)
    pooled = [np.sum(errors[n]) / words.sum() for n in names]
    axis.plot(pooled, color="black", lw=3, marker="o", label="pooled")
    for band, color in _BAND_COLORS.items():
        if band in {age_band(a) for a in test["users"]["ages"]}:
            axis.plot([], [], color=color, label=band)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="WER of each test speaker", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def bands(test: Mapping[str, Any]):
    """Relative reduction by age band with its interval."""
    keys = [k for k in test if k.startswith("bands, ")]
    if not keys:
        return None
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for i, key in enumerate(keys):
        rows = test[key]
        x = np.arange(len(rows)) + 0.18 * (i - (len(keys) - 1) / 2)
        values = np.array(
            [[r["pooled"][k] for k in ("value", "low", "high")] for r in rows.values()]
        )
        error = np.abs(values[:, 1:].T - values[:, 0])
        axis.errorbar(x, values[:, 0], error, fmt="o", capsize=3, label=key.removeprefix("bands, "))
        axis.set_xticks(range(len(rows)), list(rows))
    axis.axhline(0, color="black", lw=0.8)
    axis.set_ylabel("relative reduction of WER")
    axis.legend(frameon=False, fontsize=8, title="after | before")
    return figure


def sizes(test: Mapping[str, Any]):
    """WER against the number of utterances learnt from."""
    rows = {int(k.split()[2]): v for k, v in test.items() if k.startswith("wer from ") and len(v)}
    if not rows or "wer" not in test:
        return None
    names = list(next(iter(rows.values())))
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for name in names:
        before = _BASE if name == "acoustic" else _LLM
        x = [0, *sorted(rows), 14]
        y = [test["wer"][before]["value"], *(rows[n][name] for n in sorted(rows))]
        axis.plot(x, [*y, test["wer"][name]["value"]], marker="o", label=name)
    axis.set(xlabel="utterances learnt from", ylabel="WER, all test speakers")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure


def _chosen_tables(phase: Mapping[str, Any]) -> list[str]:
    lines = [f"{phase['users']}, base WER {phase['base']:.4f}", ""]
    for name, row in phase.items():
        if name.startswith("reading with") and isinstance(row, dict):
            lines += [f"{name}: oracle {row['oracle']:.4f}", "", "| context | WER | LLM | bonus |"]
            lines.append("| --- | --- | --- | --- |")
            lines += [
                f"| {n} | {r['wer']:.4f} | {r['llm']} | {r['bonus']} |"
                for n, r in row.items()
                if n != "oracle"
            ]
            lines += [
                f"other's at own's weights: {row[list(row)[-1]]['wer at own' + chr(39) + 's weights']:.4f}",
                "",
            ]
        elif name.startswith("word prior"):
            cells = [f"{w}: own {r['own']:.4f}, other's {r['control']:.4f}" for w, r in row.items()]
            lines += [f"{name}: {'; '.join(cells)}", ""]
    if "points" in phase:
        lines += [
            "| method | WER by checkpoint | early stop | base kept | s |",
            "| --- |" + " --- |" * 4,
        ]
        for row in phase["points"]:
            if "wer_by_checkpoint" in row:
                curve = " ".join(f"{w:.4f}" for w in row["wer_by_checkpoint"])
                lines.append(
                    f"| {row['point']} | {curve} | {row['wer_early_stop']:.4f} | {row['base_kept']} "
                    f"| {row['seconds']} |"
                )
        lines.append("")
    for row in phase.get("finalists", []):
        cells = [f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float)]
        lines.append(f"final: {row['point']} at checkpoint {row['checkpoint']}: {', '.join(cells)}")
    lines += [f"failed: {f}" for f in phase.get("failed", [])]
    return [*lines, f"chosen: {json.dumps(phase.get('chosen'))}", f"{phase['seconds']} s"]


def _test_tables(phase: Mapping[str, Any]) -> list[str]:
    lines = []
    if "wer" in phase:
        lines += ["| system | WER |", "| --- | --- |"]
        lines += [f"| {name} | {_cell(row)} |" for name, row in phase["wer"].items()]
        lines += [
            "",
            "| after, before | pooled reduction | mean over speakers |",
            "| --- | --- | --- |",
        ]
        for pair, row in phase["reductions"].items():
            after, before = pair.split(" | ")
            lines.append(f"| {after}, {before} | {_cell(row['pooled'])} | {_cell(row['mean'])} |")
        lines.append("")
    for key, rows in phase.items():
        if key.startswith("bands, "):
            cells = [f"{b} ({r['speakers']}): {_cell(r['pooled'])}" for b, r in rows.items()]
            lines.append(f"{key}: {'; '.join(cells)}")
        elif key.startswith(("worse, ", "wer from ", "failed")):
            lines.append(f"{key}: {json.dumps(rows)}")
    return [*lines, f"{phase['seconds']} s"]


def _cell(row: Mapping[str, float]) -> str:
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
