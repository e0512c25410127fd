"""When a process took its memory: peaks so far at every moment of a stage."""

import time
from typing import Any

import jax

from tiny_align_jax import heap
from tiny_align_jax.train import run

_RISE_BYTES = 5_000_000  # of a peak that is worth a row


class Moments:
    """Peaks so far after every compilation of this process that raised one, and wherever `mark` is called.

    A row "compile f" holds what compiling f took, and what ran since the row before.

    Attributes:
        rows: in their order; bytes of the device are None where JAX does not count them.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._began_s = time.monotonic()
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def mark(self, name: str) -> dict[str, Any]:
        """A row for now, whatever the peaks are."""
        self.rows.append(self._now(name))
        return self.rows[-1]

    def _compiled(self, event: str, duration_secs: float, **about: str | int) -> None:
        del duration_secs
        if event != heap.COMPILED_EVENT:
            return
        row = self._now(f"compile {about.get('fun_name', '')}")
        before = self.rows[-1] if self.rows else {}
        if any((row[k] or 0) - (before.get(k) or 0) > _RISE_BYTES for k in row if "peak" in k):
            self.rows.append(row)

    def _now(self, name: str) -> dict[str, Any]:
        stats = jax.local_devices()[0].memory_stats() or {}
        return {
            "after": name,
            "seconds": round(time.monotonic() - self._began_s, 1),
            "device_peak_bytes": stats.get("peak_bytes_in_use"),
            "device_bytes": stats.get("bytes_in_use"),
            "host_peak_bytes": run.peak_rss_bytes(),
            "resident": heap.resident_bytes(),
        }
