"""What every experiment does before its work."""

import os
import subprocess
import sys
import time

import pytest

from experiments import _main


def test_a_program_without_its_time_stamp_is_removed(tmp_path):
    """JAX could write no other program beside it."""
    names = ("whole-cache", "whole-atime", "torn-cache", "new-cache")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    for name in names[:3]:
        os.utime(tmp_path / name, (time.time() - 100,) * 2)
    _main.mend_programs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole-cache", "whole-atime", "new-cache"}
    # Taken away by another process between being listed and being looked at.
    (tmp_path / "gone-cache").symlink_to(tmp_path / "nowhere")
    _main.mend_programs(tmp_path)
    _main.mend_programs(tmp_path / "absent")


@pytest.mark.parametrize(
    ("program", "flag", "named"),
    [
        ("train --config=configs/so762.py", "train.num_step=3", "num_steps"),
        ("personalize", "adapt.tolerence=1", "tolerance"),  # a flag with a default
    ],
)
def test_a_key_that_the_config_lacks_ends_in_one_line(program, flag, named):
    name, *given = program.split()
    command = [sys.executable, "-m", f"experiments.{name}", *given]
    done = subprocess.run(
        [*command, "--workdir=unused", f"--config.{flag}"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert f"--config.{flag}: " in line and f'Did you mean "{named}"' in line
