"""The command line of experiments.fetch_assets, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.weights import writers
from tiny_align_jax.weights.assets import ASSETS

_ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.fetch_assets", *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120)


def test_list_names_every_asset():
    result = _run("--list")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ASSETS) and "Apache-2.0" in result.stdout


def test_a_local_file_is_converted_and_shown(tmp_path):
    writers.write_llama_gguf(tmp_path / "mine.gguf")
    result = _run(f"--assets={tmp_path}/mine.gguf", f"--cache_dir={tmp_path}/cache", "--verify")
    assert result.returncode == 0, result.stderr
    assert "fingerprint" in result.stdout and str(tmp_path / "cache" / "mine-") in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--assets=whisper-huge",), "unknown model 'whisper-huge'"),
        (("whisper-base",), "--assets=NAME"),
        (("--asset=x",), "Did you mean: assets"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(tmp_path, arguments, message):
    result = _run(*arguments, f"--cache_dir={tmp_path}")
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_one_failure_does_not_hide_the_others(tmp_path):
    writers.write_llama_gguf(tmp_path / "mine.gguf")
    result = _run(f"--assets=nonsense,{tmp_path}/mine.gguf", f"--cache_dir={tmp_path}/cache")
    assert result.returncode != 0
    assert "nonsense" in result.stderr and "mine-" in result.stdout
