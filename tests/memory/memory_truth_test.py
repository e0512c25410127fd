"""Predicted against measured memory in miniature: a stage in a process of its own, as the table of docs/edge.md."""

import json
import subprocess
import sys

import jax
import pytest

from tests.train import world
from tiny_align_jax import heap, memory_truth
from tiny_align_jax.types import ConfigError

_MEASURE = """
import pathlib, sys
import jax
from tiny_align_jax import heap, memory_truth
heap.give_back_after_compiling()
world = memory_truth.World("whisper", "llama", ("features",), utterance_s=2.0)
memory_truth.run_here("tiny", world, "features", {}, pathlib.Path(sys.argv[1]))
assert jax.config.jax_compilation_cache_dir == f"{sys.argv[1]}/programs/tiny.features"
"""


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """Features of the tiny corpus, measured."""
    out = tmp_path_factory.mktemp("truth")
    (out / "rows").mkdir()
    folder = out / "worlds" / "tiny"
    config, _ = world.make(folder)
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "rows" / "tiny.features.json").read_text())


def test_a_process_takes_what_was_predicted(row):
    off = row["predicted_host_bytes"] / row["measured_host_bytes"] - 1
    assert off >= -memory_truth.HOST_TOLERANCE, row
    # The size of the bare process was measured with recent packages; with the oldest set it is 263 MB, not 621.
    if jax.__version_info__ >= (0, 8):
        assert off <= memory_truth.HOST_TOLERANCE, row


def test_a_row_tells_when_it_took_what(row):
    moments = row["moments"]
    assert moments[-1]["after"] == "end" and any("encode" in m["after"] for m in moments)
    peaks = [moment["host_peak_bytes"] for moment in moments]
    assert peaks == sorted(peaks) and peaks[-1] == row["measured_host_bytes"]
    assert moments[-1]["resident"] == row["resident"]


def test_the_table_marks_what_is_off_and_what_was_not_measured(row):
    exact = {**row, "predicted_host_bytes": row["measured_host_bytes"]}
    wrong = {**row, "predicted_host_bytes": 2 * row["measured_host_bytes"]}
    *_, right, marked = memory_truth.table([exact, wrong]).splitlines()
    assert "!" not in right and marked.endswith("+100.0% ! |")
    assert "not measured" in right  # no accelerator


def test_a_failed_stage_loses_its_world_only(tmp_path):
    tiny = memory_truth.World("whisper", "llama", ("training",))
    script = (
        "import pathlib, sys\nworld, stage, out = sys.argv[1:]\nassert world != 'broken'\n"
        "if stage == 'training': pathlib.Path(out, 'rows', 'good.json').write_text('[]')"
    )
    command = ["-c", script, "{world}", "{stage}", str(tmp_path)]
    worlds = {"broken": tiny, "good": tiny}
    assert memory_truth.measure_all(worlds, tmp_path, command, 1) == [[]]


def test_unknown_worlds_name_what_there_is():
    with pytest.raises(ConfigError, match=r"nonsense(.|\n)*tiny_smollm2"):
        memory_truth.find_worlds("nonsense")
    with pytest.raises(ConfigError, match="nonsense"):
        memory_truth.find_worlds("cpu", ["nonsense"])


def test_the_heap_gives_back_after_long_compilations_only(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "give_back", lambda: calls.append(1))
    for event, seconds in ((heap.COMPILED_EVENT, 0.1), ("another", 9.0)):
        heap._after(event, seconds)
    assert not calls
    heap._after(heap.COMPILED_EVENT, 2.0, fun_name="step")
    assert calls
