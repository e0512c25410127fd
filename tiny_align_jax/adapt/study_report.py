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

from tiny_align_jax.adapt import study_scores
from tiny_align_jax.adapt.study_run import FILE
from tiny_align_jax.data.splits import AGE_BANDS, age_band

REPORT = "report.md"
_ALL, _BASE, _LLM = "all", "base", "base + LLM"
_LEARNT = 14  # utterances of a test user that the whole study learns from
_BAND_COLORS: dict[str, str] = dict(
    zip(AGE_BANDS, ("tab:red", "tab:orange", "tab:blue", "gray"), strict=True)
)


def write(folder: str | os.PathLike) -> str:
    """Writes report.md and the pictures that there is data for; returns the report's text."""
    found = json.loads((Path(folder) / FILE).read_text())
    lines = []
    for phase, title, tables, drawings in (
        ("choose", "Simulated users", _chosen_tables, (curves,)),
        ("test", "Test users", _test_tables, (slopes, bands, sizes, updates)),
    ):
        if phase in found:
            lines += [f"## {title}", "", *tables(found[phase]), ""]
            lines += [line for draw in drawings for line in _picture(folder, draw, found[phase])]
    text = "\n".join(lines)
    (Path(folder) / REPORT).write_text(text + "\n")
    return text


def _picture(folder: str | os.PathLike, draw, phase: Mapping[str, Any]) -> list[str]:
    figure = draw(phase)
    if figure is None:
        return []
    figure.set_layout_engine("constrained")
    figure.savefig(Path(folder) / f"{draw.__name__}.png", dpi=130)
    plt.close(figure)
    return [f"![{draw.__name__}]({draw.__name__}.png)", ""]


def curves(phase: Mapping[str, Any]):
    """WER of simulated users against the updates made, the best learning rate of each method."""
    best: dict[str, dict[str, Any]] = {}
    for row in _ran(phase):
        name = row["point"].split(",")[0]
        if name not in best or row["gain"] < best[name]["gain"]:
            best[name] = row
    if not best:
        return None
    figure, axis = plt.subplots(figsize=(7, 4))
    for row in best.values():
        wer = np.array(row["wer_by_checkpoint"])
        axis.plot(np.arange(len(wer)) * row["steps"], wer / wer[0], marker=".", label=row["point"])
    axis.axhline(1, color="black", lw=0.8)
    axis.set(xlabel="updates", ylabel="WER relative to the base's")
    axis.legend(frameon=False, fontsize=7)
    return figure


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
    figure, axis = plt.subplots(figsize=(8.0, 3.8))
    for i, key in enumerate(keys):
        rows = test[key]
        x = np.arange(len(rows)) + 0.8 / len(keys) * (i - (len(keys) - 1) / 2)
        values = np.array(
            [[r["pooled"][k] for k in ("value", "low", "high")] for r in rows.values()]
        )
        error = np.abs(values[:, 1:].T - values[:, 0])
        axis.errorbar(x, values[:, 0], error, fmt="o", capsize=3, label=key.removeprefix("bands, "))
        axis.set_xticks(range(len(rows)), list(rows))
    for edge in np.arange(len(rows) - 1) + 0.5:
        axis.axvline(edge, color="lightgray", lw=0.8)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_ylabel("relative reduction of WER")
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axis.legend(frameon=False, fontsize=8, title="after | before", **beside)
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
        ends = {0: test["wer"][before], _LEARNT: test["wer"][name]}
        found = {n: row[name] for n, row in rows.items()} | {n: e["value"] for n, e in ends.items()}
        y = dict(sorted(found.items()))
        (line,) = axis.plot(list(y), list(y.values()), marker="o", label=name)
        low, high = ([end[side] for end in ends.values()] for side in ("low", "high"))
        # Without these the eye makes a trend of what speakers differ by.
        axis.vlines(list(ends), low, high, color=line.get_color(), alpha=0.4, linewidth=4)
    axis.set(xlabel="utterances learnt from", ylabel="WER, all test speakers; bars: 95 %")
    axis.legend(frameon=False, loc="upper center")
    axis.grid(alpha=0.3)
    return figure


def updates(test: Mapping[str, Any]):
    """What adapted copies hear against the updates made, less the base, with the control."""
    keys = {"own": "acoustic by checkpoint, own", "another's": "acoustic by checkpoint, other's"}
    if not set(keys.values()) <= set(test):
        return None
    words_U = np.array(test["words by speaker"])
    ages = np.array([age_band(age) for age in test["users"]["ages"]])
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for i, (name, key) in enumerate(keys.items()):
        errors_JC = np.array(test[key]["by_job"]["errors"])
        errors_UC = errors_JC.reshape(len(words_U), -1, errors_JC.shape[1]).sum(1)
        by_step = {str(c): column for c, column in enumerate(errors_UC.T)}
        table = study_scores.Table(words_U, ages, by_step, {})
        found = [study_scores.reduction(table, step, "0")["wer"] for step in by_step]
        value, low, high = (np.array([f[k] for f in found]) for k in ("value", "low", "high"))
        x = np.arange(len(value)) * test[key]["steps"] + 0.4 * i  # side by side
        axis.errorbar(x, value, [value - low, high - value], marker="o", capsize=3, label=name)
    axis.axhline(0, color="black", lw=0.8)
    axis.set(xlabel="updates", ylabel="WER minus the base's, paired; bars: 95 %")
    axis.legend(frameon=False, title="utterances learnt from")
    axis.grid(alpha=0.3)
    return figure


def _chosen_tables(phase: Mapping[str, Any]) -> list[str]:
    lines = [f"{phase['users']}, base WER {phase['base']:.4f}", ""]
    for name, row in phase.items():
        if name.startswith("reading with") and isinstance(row, dict):
            lines += _reading_table(name, row)
        elif name.startswith("word prior"):
            cells = [f"{w}: own {r['own']:.4f}, other's {r['control']:.4f}" for w, r in row.items()]
            lines += [f"{name}: {'; '.join(cells)}", ""]
    lines += [
        "| method | WER by checkpoint | early stop | base kept | s |",
        "| --- |" + " --- |" * 4,
    ]
    for row in _ran(phase):
        curve = " ".join(f"{w:.4f}" for w in row["wer_by_checkpoint"])
        cells = [row["point"], curve, f"{row['wer_early_stop']:.4f}"]
        lines.append(f"| {' | '.join(cells)} | {row['base_kept']} | {row['seconds']} |")
    lines.append("")
    for row in phase.get("finalists", []):
        shown = {**row, **row.get("checked", {})}
        cells = [f"{k} {v:.4f}" for k, v in shown.items() if isinstance(v, float)]
        lines.append(f"final: {row['point']} at checkpoint {row['checkpoint']}: {', '.join(cells)}")
    lines += [f"failed: {f}" for f in phase.get("failed", [])]
    return [*lines, f"chosen: {json.dumps(phase.get('chosen'))}", f"{phase['seconds']} s"]


def _reading_table(name: str, row: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}, oracle {row['oracle']:.4f}:", "", "| context | WER | LLM | bonus |"]
    lines.append("| --- | --- | --- | --- |")
    for context, found in row["contexts"].items():
        lines.append(f"| {context} | {found['wer']:.4f} | {found['llm']} | {found['bonus']} |")
    return [*lines, "", f"other's at own weights: {row['control at own weights']:.4f}", ""]


def _ran(phase: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Points that were not left out for want of time."""
    return [row for row in phase.get("points", []) if "wer_by_checkpoint" in row]


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
