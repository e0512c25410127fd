"""The PyTorch baseline's rows: the same shapes, a process a row, never imported here."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tiny_align_jax import benchmark_sizes

MODULE = "third_party.torch_baseline.timing"
MODES = ("eager", "default", "reduce-overhead", "max-autotune", "cuda-graph")
CASES = ("embedlink", "embedlink_ctc", "next_token", "decode", "encoder")


def rows(
    case: str, size_name: str, settings: Any, folder: Path, end_s: float
) -> list[dict[str, Any]]:
    """Rows of one case in every mode; a mode that fails or takes too long leaves a row that says so.

    Args:
        case: of CASES. size_name: its size.
        settings: `benchmark.Settings`: modes, limits and what to keep.
        folder: of measured rows, FOLDER/torch.<case>.<size>.<number of the variant>.<mode>.json.
        end_s: no process starts after this monotonic time; what is missing then has no row.
    """
    size = benchmark_sizes.find(size_name)
    found = []
    variants = list(enumerate(_variants(case, size).items()))
    for number, (variant, arguments) in variants[:1] if settings.torch_first else variants:
        for mode in settings.torch_modes:
            if mode == "cuda-graph" and case in ("decode", "encoder"):
                continue  # 'reduce-overhead' is CUDA graphs there
            row = {
                "case": case,
                "size": size_name,
                "variant": variant,
                "framework": f"torch {mode}",
            }
            path = folder / f"torch.{case}.{size_name}.{number}.{mode}.json"
            line = [f"--case={case}", f"--mode={mode}", f"--size={size_name}", *arguments]
            if settings.keep and path.exists():
                found.append(row | _read(path))
            elif time.monotonic() < end_s:
                found.append(row | _run(line, path, settings.timeout_s))
    return found


def _variants(case: str, size: benchmark_sizes.Size) -> dict[str, list[str]]:
    """Arguments of the baseline by the variant that our own rows have."""
    if case in ("embedlink", "embedlink_ctc"):
        return {variant: [f"--rows={n}"] for variant, n in size.tables().items()}
    if case == "decode":
        return {f"batch {n}": [f"--batch_size={n}"] for n in size.decode.batch_sizes}
    if case == "encoder":
        return {f"batch {size.encoder_batch} x {size.window_s:g} s": []}
    return {"activations kept": [f"--rows={size.seen_rows}"]}


def _run(line: Sequence[str], path: Path, timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", MODULE, *line, f"--json={path}"]
    path.unlink(missing_ok=True)
    try:
        subprocess.run(command, check=True, timeout=timeout_s, stdout=subprocess.DEVNULL)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        logging.error("%s", error)
        return {"error": type(error).__name__, "facts": {}}
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    measured = json.loads(path.read_text())
    times = {name: measured.pop(f"{theirs}_ms") / 1e3 for name, theirs in _TIMES.items()}
    facts = {k: v for k, v in measured.items() if k in _FACTS and v is not None}
    return {
        **times,
        "repeats": measured["repeats"],
        "flops": 0.0,
        "num_bytes": 0.0,
        "dtype": "",
        "facts": facts,
    }


_TIMES = {"seconds": "median", "low_s": "low", "high_s": "high"}
_FACTS = (
    "compile_s",
    "peak_device_mb",
    "tokens_per_s",
    "prompt_ms",
    "trainable_params",
    "times_real_time",
    "machine",
)
