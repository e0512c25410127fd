"""The log of a run: no step twice, whatever a kill left behind."""

import json
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from tiny_align_jax.train import logs


def _lines(folder):
    return [json.loads(line) for line in (folder / logs.LOG_FILE).read_text().splitlines()]


def _write(folder, first_step, last_step, num_steps=9, validate=()):
    with logs.RunLog(folder, first_step, num_steps, progress=False) as log:
        for step in range(first_step + 1, last_step + 1):
            log.write(step, {"loss": step / 7})
            log.progress(step, {"loss": step / 7})
            if step in validate:
                log.write(step, {"validation/wer": 0.25})


def test_lines_are_json_with_six_digits(tmp_path):
    _write(tmp_path, 0, 3, validate=(2,))
    assert _lines(tmp_path) == [
        {"step": 1, "loss": 0.142857},
        {"step": 2, "loss": 0.285714},
        {"step": 2, "validation/wer": 0.25},
        {"step": 3, "loss": 0.428571},
    ]


@pytest.mark.parametrize("torn", ["", '{"step": 8, "lo', "\n"])
def test_a_resumed_run_drops_what_it_logs_again(tmp_path, torn):
    _write(tmp_path, 0, 7, validate=(4, 6))
    before = _lines(tmp_path)
    with (tmp_path / logs.LOG_FILE).open("a") as file:
        file.write(torn)
    _write(tmp_path, 4, 7, validate=(6,))
    assert _lines(tmp_path) == before


def test_a_run_that_starts_over_starts_its_log_over(tmp_path):
    _write(tmp_path, 0, 5)
    _write(tmp_path, 0, 2)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_a_finished_run_repeats_its_last_validation_alone(tmp_path):
    _write(tmp_path, 0, 9, validate=(6, 9))
    before = _lines(tmp_path)
    with logs.RunLog(tmp_path, 9, 9, progress=False) as log:
        log.write(9, {"validation/wer": 0.25})
    assert _lines(tmp_path) == before


def _shown(folder):
    """Events that TensorBoard shows: a session's start hides later steps of the sessions before."""
    events = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.session_log.status == event_pb2.SessionLog.START:
                events = [e for e in events if e.step < event.step]
            elif event.HasField("summary"):
                events.append(event)
    return events


def test_tensorboard_shows_no_step_twice(tmp_path):
    _write(tmp_path, 0, 7)
    _write(tmp_path, 4, 9)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert [event.step for event in _shown(tmp_path / "tensorboard")] == list(range(1, 10))


def test_the_writer_loads_no_torch_and_hides_none(tmp_path):
    code = """
import importlib.util, sys
from tiny_align_jax.train import logs
found = importlib.util.find_spec("torch")
logs.RunLog(sys.argv[1], 0, 1, progress=False).write(1, {"loss": 1.0})
assert "torch" not in sys.modules
assert bool(importlib.util.find_spec("torch")) == bool(found)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list((tmp_path / "tensorboard").iterdir())
