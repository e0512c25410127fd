"""Runs benchmark cases, each in a process of its own, and keeps what is there when one fails.

<out>/rows/<case>.<size>.json   rows of one process, written when it ends
<out>/benchmark.json            machine, ceilings and all rows so far
<out>/benchmark.md              the table
"""

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tiny_align_jax import benchmark_sizes
from tiny_align_jax.types import ConfigError, Utterance

TIMEOUT_S = 420
# Cases in the order they run, with the sizes an accelerator and a CPU run them at.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ceilings": (("smollm2",), ("smollm2_tiny_en",)),
    "embedlink": (("llama1b",), ("smollm2_tiny_en",)),
    "embedlink_ctc": (("smollm2",), ("smollm2_tiny_en",)),
    "next_token": (("llama1b",), ("smollm2_tiny_en",)),
    "decode": (("llama1b", "smollm2"), ("smollm2_tiny_en",)),
    "encoder": (("smollm2",), ("smollm2_tiny_en",)),
    "corpus": (("smollm2",), ("smollm2_tiny_en",)),
    "startup": (("smollm2",), ("smollm2_tiny_en",)),
}
_INSIDE = ("first_step",)  # run by other cases


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a benchmark runs.

    Attributes:
        cases: names; all of CASES if empty.
        size: one size for every case; '' for each case's own.
        utterances: corpus for case 'corpus'; made-up noise if empty.
    """

    cases: tuple[str, ...] = ()
    size: str = ""
    utterances: tuple[Utterance, ...] = ()

    def __post_init__(self):
        unknown = [c for c in self.cases if c not in (*CASES, *_INSIDE)]
        if unknown:
            raise ConfigError(
                f"unknown case(s) {', '.join(unknown)}; there are: {', '.join(CASES)}"
            )
        if self.size:
            benchmark_sizes.find(self.size)


def run_all(
    settings: Settings, out: Path, command: Sequence[str], cache_dir: str
) -> list[dict[str, Any]]:
    """Runs every case in a process of its own; failures are logged and leave the others alone.

    Args:
        settings: what to run.
        out: folder of results.
        command: arguments of Python that run one case here: `{case}`, `{size}`, `{out}` and
            `{programs}`, the folder that keeps compiled programs, are filled in.
        cache_dir: the usual folder of compiled programs.

    Returns:
        All rows.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    is_accelerator = False
    for case in dict.fromkeys(("ceilings", *(settings.cases or CASES))):
        on_accelerator, on_cpu = CASES[case]
        sizes = (settings.size,) if settings.size else on_accelerator if is_accelerator else on_cpu
        for size in sizes:
            rows += _run_one(command, case, size, out, cache_dir)
            is_accelerator = is_accelerator or any(r["facts"].get("accelerator") for r in rows)
            _write(out, rows)
    return rows


def _run_one(
    command: Sequence[str], case: str, size: str, out: Path, cache_dir: str
) -> list[dict[str, Any]]:
    line = [part.format(case=case, size=size, out=out, programs=cache_dir) for part in command]
    start_s = time.monotonic()
    try:
        subprocess.run([sys.executable, *line], check=True, timeout=TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        logging.error("case %s at %s failed: %s", case, size, error)
        return [{"case": case, "size": size, "error": str(error), "facts": {}}]
    logging.info("case %s at %s: %.0f s", case, size, time.monotonic() - start_s)
    return read_rows(out, case, size)


def run_here(settings: Settings, out: Path, command: Sequence[str]) -> None:
    """Runs the one case of `settings` in this process and writes its rows."""
    (case,) = settings.cases
    size = benchmark_sizes.find(settings.size)
    rows = [dataclasses.asdict(row) for row in _case(case, settings, command)(size, settings.size)]
    path = out / "rows" / f"{case}.{settings.size}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))


def read_rows(out: Path, case: str, size: str) -> list[dict[str, Any]]:
    """What `run_here` wrote."""
    return json.loads((out / "rows" / f"{case}.{size}.json").read_text())


def _case(case: str, settings: Settings, command: Sequence[str]) -> Callable:
    """The function of a case: (size, its name) -> rows. JAX starts here, not in the parent."""
    from tiny_align_jax import (
        benchmark_decode,
        benchmark_features,
        benchmark_startup,
        benchmark_steps,
        benchmark_timing,
    )

    def startup(size, size_name):
        line = [
            part.replace("{case}", "first_step").replace("{size}", size_name) for part in command
        ]
        return benchmark_startup.startup(line, size_name, read_rows)

    def corpus(size, size_name):
        return benchmark_features.corpus(size, size_name, settings.utterances)

    return {
        "ceilings": benchmark_timing.ceilings,
        "embedlink": benchmark_steps.embedlink,
        "embedlink_ctc": benchmark_steps.embedlink_ctc,
        "next_token": benchmark_steps.next_token,
        "decode": benchmark_decode.decode,
        "encoder": benchmark_features.encoder,
        "corpus": corpus,
        "startup": startup,
        "first_step": benchmark_startup.first_step,
    }[case]


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    (out / "benchmark.json").write_text(json.dumps({"rows": rows}, indent=1))
    (out / "benchmark.md").write_text(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of all rows."""
    ceilings = next((r["facts"] for r in rows if r["case"] == "ceilings" and "error" not in r), {})
    lines = [
        _machine(ceilings),
        "",
        "| case | size | variant | framework | median | 10-90 % | floor | % of floor | further |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row, ceilings) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _machine(ceilings: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{name.removesuffix('_per_s')} {value:.3g}/s"
        for name, value in ceilings.items()
        if name.endswith("_per_s")
    )
    return f"{ceilings.get('machine', platform.platform())}; ceilings measured here: {rates}"


def _line(row: dict[str, Any], ceilings: dict[str, float]) -> str:
    if "error" in row:
        return f"| {row['case']} | {row['size']} | failed: {row['error']} | | | | | | |"
    floor_s = 0.0
    if row["flops"] and ceilings:
        floor_s = max(
            row["flops"] / ceilings[f"{row['dtype']}_flops_per_s"],
            row["num_bytes"] / ceilings["copy_bytes_per_s"],
        )
    cells = [
        row["case"],
        row["size"],
        row["variant"],
        row["framework"],
        _time(row["seconds"]),
        f"{_time(row['low_s'])} - {_time(row['high_s'])}" if row["repeats"] > 1 else "",
        _time(floor_s) if floor_s else "",
        f"{100 * floor_s / row['seconds']:.0f}" if floor_s else "",
        ", ".join(f"{k} {_short(v)}" for k, v in row["facts"].items() if k != "profile"),
    ]
    return f"| {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
