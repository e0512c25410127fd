"""Where a device spends its time: kernels of a traced call, summed by name."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_SHOWN = 40


def kernels(call: Callable[[], Any]) -> dict[str, Any]:
    """Traces one call (already warm) on an accelerator.

    Returns:
        'busy_ms' of all kernels, 'span_ms' from the first kernel's start to the last one's end, 'launches',
        and 'kernels': [name, milliseconds, launches] of the costliest ones. Empty on a CPU.
    """
    if jax.default_backend() == "cpu":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(files[-1]))
        return _sum(data)


def _sum(data: Any) -> dict[str, Any]:
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    starts, ends = [], []
    for plane in data.planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                entry = totals[event.name]
                entry[0] += event.duration_ns / 1e6
                entry[1] += 1
                starts.append(event.start_ns)
                ends.append(event.start_ns + event.duration_ns)
    if not starts:
        return {}
    costliest = sorted(totals.items(), key=lambda item: -item[1][0])
    return {
        "busy_ms": sum(ms for ms, _ in totals.values()),
        "span_ms": (max(ends) - min(starts)) / 1e6,
        "launches": len(starts),
        "kernels": [[name[:90], round(ms, 4), n] for name, (ms, n) in costliest[:_SHOWN]],
    }
