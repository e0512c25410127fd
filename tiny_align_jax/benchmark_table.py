"""Benchmark rows as a Markdown table: medians, floors, and how many times faster than the baseline."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

_HIDDEN = ("profile", "machine")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of all rows; `torch / ours` is the time of the fastest mode of the baseline over ours."""
    good = [row for row in rows if "error" not in row]
    ceilings = next((row["facts"] for row in good if row["case"] == "ceilings"), {})
    baseline: dict[tuple, float] = {}
    for row in good:
        if row["framework"] != "jax":
            baseline[_key(row)] = min(row["seconds"], baseline.get(_key(row), float("inf")))
    lines = [
        _machine(ceilings),
        "",
        "| case | size | variant | framework | median | 10-90 % | floor | % of floor | torch / ours | further |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row, ceilings, baseline) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def floor_s(row: Mapping[str, Any], ceilings: Mapping[str, float]) -> float:
    """Seconds below which this machine cannot do the counted work; 0 if nothing was counted."""
    if not row["flops"] or not ceilings:
        return 0.0
    compute_s = row["flops"] / ceilings[f"{row['dtype']}_flops_per_s"]
    return max(compute_s, row["num_bytes"] / ceilings["copy_bytes_per_s"])


def _key(row: Mapping[str, Any]) -> tuple:
    return row["case"], row["size"], row["variant"]


def _machine(ceilings: Mapping[str, Any]) -> str:
    rates = ", ".join(
        f"{name.removesuffix('_per_s')} {value:.3g}/s"
        for name, value in ceilings.items()
        if name.endswith("_per_s")
    )
    return f"{ceilings.get('machine', platform.platform())}; ceilings measured here: {rates}"


def _line(row: Mapping[str, Any], ceilings: Mapping[str, float], baseline: Mapping) -> str:
    name = f"| {row['case']} | {row['size']} | {row['variant']} | {row['framework']} |"
    if "error" in row:
        return f"{name} failed: {row['error']} | | | | | |"
    floor = floor_s(row, ceilings)
    theirs = baseline.get(_key(row)) if row["framework"] == "jax" else None
    cells = [
        _time(row["seconds"]),
        f"{_time(row['low_s'])} - {_time(row['high_s'])}" if row["repeats"] > 1 else "",
        _time(floor) if floor else "",
        f"{100 * floor / row['seconds']:.0f}" if floor else "",
        f"{theirs / row['seconds']:.2f}" if theirs else "",
        ", ".join(f"{k} {_short(v)}" for k, v in row["facts"].items() if k not in _HIDDEN),
    ]
    return f"{name} {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
