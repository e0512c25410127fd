"""Energy of a benchmark on a board: what to run there, and joules from what it wrote.

Nothing here has seen a board: the format is that of JetPack 6's tegrastats.
"""

import re
from pathlib import Path

from tiny_align_jax.types import DataError

INTERVAL_MS = 100
_INPUT_POWER = re.compile(
    r"\bVDD_IN (\d+)mW"
)  # of the whole module, now; after the '/' is the mean


def commands(out: Path) -> str:
    """How to measure energy and temperature beside a benchmark that writes to `out`."""
    log = out / "tegrastats.log"
    return (
        "energy and temperature: not measured here. On a Jetson, in a second terminal beside the full benchmark:\n"
        f"  sudo tegrastats --interval {INTERVAL_MS} --logfile {log}    # ends with: sudo tegrastats --stop\n"
        f"  python -m experiments.benchmark --out={out} --energy_log={log}    # joules from that file\n"
        "  sudo pip install jetson-stats && jtop    # the same to look at: power mode, clocks, throttling\n"
        "on a Raspberry Pi 5: vcgencmd pmic_read_adc; vcgencmd measure_temp; vcgencmd get_throttled"
    )


def joules(text: str, interval_ms: int = INTERVAL_MS) -> float:
    """Energy of the whole module while tegrastats wrote `text`.

    Raises:
        DataError: no line names the input power.
    """
    powers_mw = [int(power) for power in _INPUT_POWER.findall(text)]
    if not powers_mw:
        raise DataError("no 'VDD_IN <n>mW' in the log; expected the output of tegrastats")
    return sum(powers_mw) * interval_ms * 1e-6
