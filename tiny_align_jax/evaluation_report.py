"""An evaluation for readers: a table, a page and a plot, all from metrics.json and the predictions."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tiny_align_jax import evaluate
from tiny_align_jax.metrics import _bootstrap

_LABELS = {
    evaluate.HEARD: "heard (no LLM)",
    evaluate.FUSED: "read with help",
    evaluate.ANSWER: "LLM's answer",
    evaluate.ORACLE: "oracle (true text)",
}
_METRICS = ("wer", "cer", "rouge1", "rouge2", "rougeL")
_NUM_SAMPLES = 10


def table(metrics: Mapping[str, Any], normalizer: str) -> str:
    """Scores of every system and group under one normaliser, as an aligned Markdown table."""
    scores = metrics["normalizers"][normalizer]["scores"]
    shown = [m for m in _METRICS if m in next(iter(scores.values()))["all"]]
    header = ["system", "group", "utterances", "speakers", *shown]
    rows = [
        [
            _LABELS.get(system, system),
            group,
            str(row["num_utterances"]),
            str(row["num_speakers"]),
            *(_with_interval(row[m]) for m in shown),
        ]
        for system, groups in scores.items()
        for group, row in groups.items()
    ]
    return _markdown(header, rows)


def summary(metrics: Mapping[str, Any]) -> str:
    """What was scored, every table, and what the LLM adds: the text that a terminal shows."""
    lines = [headline(metrics), ""]
    for normalizer, found in metrics["normalizers"].items():
        lines += [f"Normaliser `{normalizer}` (both sides), {interval_note(metrics)}:", ""]
        lines += [table(metrics, normalizer), ""]
        for pair, row in found["differences"].items():
            parts = [f"{m} {_signed(row[m])}" for m in _METRICS if m in row]
            lines += [f"{pair}, paired: {', '.join(parts)}", ""]
    if metrics["skipped"]:
        lines.append(f"{len(metrics['skipped'])} utterance(s) skipped, not in these scores:")
        lines += [f"- {name}: {why}" for name, why in metrics["skipped"].items()]
    if metrics["num_answers_cut"]:
        lines.append(f"{metrics['num_answers_cut']} answer(s) were cut at the length limit.")
    return "\n".join(lines).rstrip() + "\n"


def page(evaluation: evaluate.Evaluation, plot_name: str) -> str:
    """The report: summary, plot, prompt, and samples that were drawn by seed, not by result."""
    metrics = evaluation.metrics
    lines = ["# Evaluation", "", summary(metrics), f"![WER by group]({plot_name})", ""]
    if metrics["prompt"]:
        lines += ["## Prompt", "", "```", metrics["prompt"], "```", ""]
    lines += ["## Samples (drawn by seed 0, not by result)", ""]
    drawn = np.random.default_rng(0).permutation(len(evaluation.utterances))[:_NUM_SAMPLES]
    rows = evaluate.prediction_rows(evaluation)
    columns = ["id", "age", "reference", *evaluation.systems]
    lines.append(_markdown(columns, [[_cell(rows[i][c]) for c in columns] for i in sorted(drawn)]))
    versions = ", ".join(f"{k} {v}" for k, v in metrics["versions"].items())
    seconds = ", ".join(f"{k} {v}" for k, v in metrics["seconds"].items())
    lines += ["", f"Seconds, compilation included: {seconds}. Versions: {versions}."]
    return "\n".join(lines) + "\n"


def plot(metrics: Mapping[str, Any], path: str | os.PathLike, metric: str = "wer") -> None:
    """One metric by group with its intervals, a panel a normaliser, as PNG."""
    normalizers = metrics["normalizers"]
    figure, axes = plt.subplots(
        1, len(normalizers), figsize=(6 * len(normalizers), 4), sharey=True, squeeze=False
    )
    for axis, (normalizer, found) in zip(axes[0], normalizers.items(), strict=True):
        _draw_panel(axis, found["scores"], metric)
        axis.set_title(f"{metric.upper()}, normaliser {normalizer}")
    axes[0][0].set_ylim(bottom=0)  # after all panels are drawn: they share the axis
    axes[0][0].set_ylabel(f"{metric.upper()} ({interval_note(metrics)})")
    handles, labels = axes[0][0].get_legend_handles_labels()
    # Below the panels: inside them it would lie on the bars of some group.
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False)
    figure.suptitle(headline(metrics), fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(Path(path), dpi=120)
    plt.close(figure)


def write(evaluation: evaluate.Evaluation, workdir: str | os.PathLike) -> dict[str, Path]:
    """Writes the page and the plot beside the metrics, under the same naming rule.

    Returns:
        Paths by kind, 'report' and 'plot'.
    """
    folder, tag = Path(workdir), evaluate.file_tag(evaluation.metrics)
    report, picture = folder / f"report{tag}.md", folder / f"wer_by_group{tag}.png"
    plot(evaluation.metrics, picture)
    report.write_text(page(evaluation, picture.name), encoding="utf-8")
    return {"report": report, "plot": picture}


def _draw_panel(axis, scores: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    names = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    for i, (system, groups) in enumerate(scores.items()):
        values = np.array([groups[g][metric]["value"] for g in names])
        lows = np.array([groups[g][metric]["low"] for g in names])
        highs = np.array([groups[g][metric]["high"] for g in names])
        errors = np.maximum([values - lows, highs - values], 0)
        x = np.arange(len(names)) + (i - (len(scores) - 1) / 2) * width
        axis.bar(x, values, width, yerr=errors, capsize=2, label=_LABELS.get(system, system))
    counts = [next(iter(scores.values()))[g]["num_utterances"] for g in names]
    labels = [f"{g}\nn={n}" for g, n in zip(names, counts, strict=True)]
    axis.set_xticks(np.arange(len(names)), labels, fontsize=8)


def headline(metrics: Mapping[str, Any]) -> str:
    """What was evaluated, in one line."""
    part = "PARTIAL (a drawn subset, not a result): " if metrics["partial"] else ""
    return (
        f"{part}{metrics['dataset']} {metrics['split']}, {metrics['num_utterances']} utterances of "
        f"{metrics['num_speakers']} speakers; {metrics['encoder']} + {metrics['projector']} "
        f"({metrics['objective']}, step {metrics['step']}) + {metrics['llm']}, snap {metrics['snap']}, "
        f"reading {metrics['reading']['method']}"
    )


def interval_note(metrics: Mapping[str, Any]) -> str:
    """What the intervals were resampled over, in one line."""
    scores = next(iter(metrics["normalizers"].values()))["scores"]
    groups = next(iter(scores.values())).values()
    units = sorted({row["wer"]["resampled"] for row in groups})
    note = f"{metrics['intervals']['level']:.0%} bootstrap intervals over {units[0]}s"
    few = f" (utterances where a group has fewer than {_bootstrap.MIN_SPEAKERS} speakers)"
    return note if len(units) == 1 else note.replace("utterances", "speakers") + few


def _with_interval(score: Mapping[str, float]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _signed(score: Mapping[str, float]) -> str:
    return f"{score['value']:+.3f} [{score['low']:+.3f}, {score['high']:+.3f}]"


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
