"""The rows of a sweep as Markdown, CSV and LaTeX; equal columns in all three."""

import csv
import io
from collections.abc import Callable, Sequence

from tiny_align_jax import report
from tiny_align_jax.report import Row

TITLES = {"wer": "WER", "cer": "CER", "rouge1": "ROUGE-1", "rougeL": "ROUGE-L"}


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    """Metrics that at least one row has."""
    return [m for m in report.METRICS if any(m in row.scores for row in rows)]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines for readers: intervals in the cells, a reason where a number is missing."""
    metrics = shown_metrics(rows)
    header = ["row", "seeds"]
    for metric in metrics:
        header += [f"{TITLES[metric]} ± seeds", f"{TITLES[metric]} speakers"]
    header += ["parameters", "train s", "peak MB", "note"]
    lines = []
    for row in rows:
        line = [row.name, str(len(row.entries))]
        for metric in metrics:
            line += _score_cells(row, metric)
        peak, is_bound = row.peak_mb
        line += [
            _number(row.params, ",.0f"),
            _number(row.train_s, ".1f") + (f" ({row.lanes} at once)" if row.lanes > 1 else ""),
            ("≤ " if is_bound and peak is not None else "") + _number(peak, ",.0f"),
            note(row),
        ]
        lines.append(line)
    return header, lines


def note(row: Row) -> str:
    """Why points of the row are missing."""
    reasons = dict.fromkeys(f"{e.status}: {e.error}".rstrip(": ") for e in row.unfinished)
    return "; ".join(reasons)


def markdown(rows: Sequence[Row]) -> str:
    """An aligned Markdown table."""
    header, lines = cells(rows)
    table = [[c.replace("|", "\\|").replace("\n", " ") for c in line] for line in [header, *lines]]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in table
    )


def to_csv(rows: Sequence[Row]) -> str:
    """A column a number, empty where there is none."""
    metrics = shown_metrics(rows)
    header = ["row", "seeds"]
    for metric in metrics:
        header += [metric, f"{metric}_seed_half_width"]
        header += [f"{metric}_speaker_low", f"{metric}_speaker_high"]
    header += ["parameters", "train_s", "lanes", "peak_mb", "peak_is_bound", "note"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line: list = [row.name, len(row.entries)]
        for metric in metrics:
            score = row.scores.get(metric)
            speakers = score.speakers if score else None
            line += [score.mean, score.half_width] if score else [None, None]
            line += [speakers.low, speakers.high] if speakers else [None, None]
        writer.writerow([*line, row.params, row.train_s, row.lanes, *row.peak_mb, note(row)])
    return out.getvalue()


def latex(rows: Sequence[Row], caption: str) -> str:
    """A booktabs table; reasons stand in a comment above it, where they cannot burst it."""
    header, lines = cells(rows)
    reasons = [f"% {line[0]}: {line[-1]}" for line in lines if line[-1]]
    body = [" & ".join(map(_tex, line[:-1])) + r" \\" for line in lines]
    return "\n".join(
        [
            *(reason.replace("\n", " ") for reason in reasons),
            r"\begin{table}",
            rf"\caption{{{_tex(caption)}}}",
            r"\begin{tabular}{l" + "r" * (len(header) - 2) + "}",
            r"\toprule",
            " & ".join(map(_tex, header[:-1])) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def comparison(a: Row, b: Row) -> str:
    """The paired comparison of two rows in words, a line a metric."""
    lines = []
    for metric, found in report.compare(a, b).items():
        gap = found.difference
        line = (
            f"{TITLES[metric]}: {a.name} less {b.name} is {gap.value:+.3f} "
            f"[{gap.low:+.3f}, {gap.high:+.3f}] over {gap.num_units} {gap.unit}s"
        )
        if found.ratio:
            value, low, high = (100 * (x - 1) for x in found.ratio)
            line += f", {value:+.1f} % [{low:+.1f} %, {high:+.1f} %]"
        verdict = "significant" if found.significant else "not significant"
        lines.append(f"- {line}: {verdict} at {report.LEVEL:.0%}")
    timed = report.seconds_to_equal(a, b)
    if timed is not None:
        best, time_b, time_a = timed
        reach = "never reaches it" if time_a is None else f"reaches it in {time_a:.1f} s"
        ratio = f" ({time_b / time_a:.1f} times sooner)" if time_a else ""
        lines.append(
            f"- {b.name} has its best validation WER {best:.3f} after {time_b:.1f} s of training; "
            f"{a.name} {reach}{ratio}"
        )
    return "\n".join(lines)


def _score_cells(row: Row, metric: str) -> list[str]:
    score = row.scores.get(metric)
    if score is None:
        return ["", ""]
    seeds = f"{score.mean:.3f}"
    seeds += "" if score.half_width is None else f" ± {score.half_width:.3f}"
    speakers = score.speakers
    return [seeds, f"[{speakers.low:.3f}, {speakers.high:.3f}]" if speakers else ""]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


_TEX: dict[str, str] = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
}
_escape: Callable[[str], str] = lambda c: _TEX.get(c, c)  # noqa: E731


def _tex(text: str) -> str:
    return "".join(map(_escape, text))
