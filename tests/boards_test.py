"""What a board needs: scripts that parse and say what they would do, settings that agree, energy from a log."""

import pathlib
import re
import subprocess

import pytest

from experiments import _device
from tiny_align_jax import benchmark_energy
from tiny_align_jax.types import DataError

ROOT = pathlib.Path(__file__).parent.parent
JETSON = ROOT / "third_party" / "jetson"
SCRIPTS = sorted(JETSON.glob("*.sh"))


def _run(*words):
    return subprocess.run(
        ["bash", *map(str, words)], capture_output=True, text=True, timeout=60, cwd=JETSON
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_parses(script):
    done = _run("-n", script)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(("jetpack", "jax"), [("6.2", "0.6.2"), ("7.2", "0.10.0")])
def test_a_build_is_pinned_and_can_be_looked_at(jetpack, jax):
    done = _run("build.sh", f"--jetpack={jetpack}", "--out=OUT", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert f"JAX={jax}" in done.stdout and "linux/arm64" in done.stdout
    done = _run("install.sh", f"--jetpack={jetpack}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert f"jax=={jax}" in done.stdout and "--preset=orin_8gb --smoke" in done.stdout
    assert not (JETSON / "OUT").exists()


@pytest.mark.parametrize(
    "words",
    [("build.sh", "--jetpack=5.1"), ("build.sh", "--nonsense=1"), ("swap.sh", "--size=1"),
     ("check_wheels.sh",)],
)  # fmt: skip
def test_what_is_not_understood_is_refused(words):
    done = _run(*words)
    assert done.returncode and not done.stdout and done.stderr


def test_every_argument_of_the_container_is_given():
    wanted = set(re.findall(r"\$\{([A-Z_]+)[}:]", (JETSON / "Containerfile").read_text()))
    done = _run("build.sh", "--jetpack=6.2", "--dry_run")
    assert wanted == set(re.findall(r"--build-arg ([A-Z_]+)=", done.stdout))
    assert "sm_87" in (JETSON / "Containerfile").read_text()


def test_the_oldest_set_is_what_jetpack_6_builds():
    pins = (ROOT / "constraints" / "oldest.txt").read_text().splitlines()
    assert {"jax==0.6.2", "jaxlib==0.6.2", "flax==0.11.2"} <= set(pins)
    assert not [pin for pin in pins if pin.startswith(("torch", "qwix", "/"))]


def test_the_runtime_file_says_what_the_preset_sets():
    lines = (JETSON / "runtime.env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert found == _device.preset("orin_8gb").environment


def test_preset_is_another_name_of_device():
    assert _device.named_in(["benchmark", "--preset=orin_8gb"]) == "orin_8gb"


def test_joules_of_a_log():
    line = "11-25-2026 13:00:00 RAM 3000/7620MB CPU [9%@729] VDD_IN {}mW/4990mW VDD_CPU_GPU_CV 900mW/900mW\n"
    text = "".join(line.format(power) for power in (4000, 5000, 6000))
    assert benchmark_energy.joules(text, interval_ms=200) == pytest.approx(3.0)
    with pytest.raises(DataError, match="VDD_IN"):
        benchmark_energy.joules("RAM 1/2MB")
    assert "tegrastats" in benchmark_energy.commands(pathlib.Path("OUT"))
