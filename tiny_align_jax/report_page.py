"""A sweep's report as files: Markdown, CSV, LaTeX, PNG, and one HTML page that needs nothing beside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiny_align_jax import report, report_plots, report_tables
from tiny_align_jax.report import Row

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td:last-child, th:last-child { text-align: left; white-space: normal; min-width: 14rem; color: #933; }
img { max-width: 100%; }
"""


def write(
    rows: Sequence[Row],
    scoring: str,
    title: str,
    folder: Path,
    metric: str = "wer",
    pairs: Sequence[tuple[Row, Row]] = (),
    races: Sequence[str] = (),
) -> dict[str, Path]:
    """Writes the whole report.

    Args:
        rows: from `report.load`.
        scoring: what the scores are, e.g. 'test/answer'.
        title: heading.
        folder: where to write.
        metric: what the pictures show.
        pairs: rows to compare.
        races: further comparisons in words, from `report_race.tell`.

    Returns:
        Paths by kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = _about(rows, scoring)
    compared = [*(report_tables.comparison(a, b) for a, b in pairs), *races]
    pictures = report_plots.write(rows, folder, metric)
    texts = {
        "report.md": _markdown(rows, title, about, compared, pictures),
        "report.csv": report_tables.to_csv(rows),
        "report.tex": report_tables.latex(rows, f"{title}. {about}"),
        "report.html": _page(rows, title, about, compared, pictures),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts} | pictures


def _about(rows: Sequence[Row], scoring: str) -> str:
    counts = sorted({len(e.predictions) for row in rows for e in row.entries})
    if scoring:
        split, _, rest = scoring.partition("/")
        what = f"Scored on {split} ({rest}), {' or '.join(map(str, counts))} utterances"
    else:
        what = "Validation scores of training"
    return (
        f"{what}; normaliser {report.NORMALIZER}. Intervals of {report.LEVEL:.0%}: ± over seeds "
        "(Student's t), brackets over speakers (bootstrap). Seconds are training alone, compilation "
        "left out; memory is the process's peak, ≤ where an earlier run shared the process."
    )


def _markdown(
    rows: Sequence[Row],
    title: str,
    about: str,
    compared: Sequence[str],
    pictures: Mapping[str, Path],
) -> str:
    parts = [f"# {title}", about, report_tables.markdown(rows)]
    parts += ["## Comparisons", *compared] if compared else []
    parts += [f"## {name}\n\n![{name}]({path.name})" for name, path in pictures.items()]
    return "\n\n".join(parts) + "\n"


def _page(
    rows: Sequence[Row],
    title: str,
    about: str,
    compared: Sequence[str],
    pictures: Mapping[str, Path],
) -> str:
    header, lines = report_tables.cells(rows)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(about)}</p>", "<table>"]
    parts.append(_line(header, "th"))
    parts += [_line(line, "td") for line in lines]
    parts.append("</table>")
    if compared:
        items = [line.removeprefix("- ") for text in compared for line in text.splitlines()]
        parts.append("<h2>Comparisons</h2><ul>")
        parts += [f"<li>{html.escape(item)}</li>" for item in items]
        parts.append("</ul>")
    for name, path in pictures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
