"""A hard limit of memory: what stays below it ends by itself, what goes above is killed."""

import sys

import pytest

from tiny_align_jax.memory import limit
from tiny_align_jax.types import ConfigError

_HOLD = "import time; held = bytearray({} * 10**6); held[::4096] = b'x' * len(held[::4096]); time.sleep({})"


def _command(megabytes, seconds):
    return [sys.executable, "-S", "-c", _HOLD.format(megabytes, seconds)]


@pytest.mark.parametrize("allow_cgroup", [True, False])
def test_a_command_below_the_limit_ends_by_itself(allow_cgroup):
    outcome = limit.run(_command(60, 0.3), 200 * 10**6, allow_cgroup=allow_cgroup)
    assert (outcome.returncode, outcome.killed) == (0, False)
    if outcome.how == "watchdog":
        assert 60e6 < outcome.peak_bytes < 120e6


@pytest.mark.parametrize("allow_cgroup", [True, False])
def test_a_command_above_the_limit_is_killed(allow_cgroup):
    outcome = limit.run(_command(300, 60), 150 * 10**6, allow_cgroup=allow_cgroup)
    assert outcome.killed and outcome.returncode != 0


def test_children_count(tmp_path):
    inner = _command(300, 60)
    outer = [sys.executable, "-S", "-c", f"import subprocess; subprocess.run({inner!r})"]
    assert limit.run(outer, 150 * 10**6, allow_cgroup=False).killed


def test_an_exit_code_is_handed_on_and_no_limit_is_refused():
    assert limit.run([sys.executable, "-S", "-c", "raise SystemExit(3)"], 10**9).returncode == 3
    with pytest.raises(ConfigError, match="limit_bytes=0"):
        limit.run(["true"], 0)
