"""Device presets: what they set exists, they are applied before JAX, and the command line wins."""

import dataclasses
import json
import subprocess
import sys

import pytest
from absl import flags

from configs import common
from experiments import _device, _main
from tiny_align_jax import registry
from tiny_align_jax.memory import budget

VARIABLE = "XLA_PYTHON_CLIENT_PREALLOCATE"


@pytest.fixture
def base():
    return json.loads(common.base().to_json_best_effort())


@pytest.fixture
def chosen(monkeypatch):
    """Sets --device as the command line would."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])

    def choose(name):
        monkeypatch.setattr(flags.FLAGS["device"], "_value", name)

    return choose


def test_the_presets_of_the_guide_exist():
    expected = {"orin_8gb", "orin_nano_4gb", "pi5_8gb", "pi5_4gb", "cpu", "h100"}
    assert expected <= set(_device.NAMES)


@pytest.mark.parametrize("name", _device.NAMES)
def test_a_preset_fits_the_config(name, base, chosen):
    preset = _device.preset(name)
    assert preset.budget_bytes > 0
    for key in {**preset.limits, **preset.values}:
        group, _, field = key.partition(".")
        assert field in base[group], key
    chosen(name)
    before = json.loads(json.dumps(base))
    _device.fit(base, {})
    device = registry.make_config(budget, base["device"])
    assert (device.name, device.budget_bytes) == (name, preset.budget_bytes)
    for key, limit in preset.limits.items():
        group, _, field = key.partition(".")
        assert base[group][field] == min(limit, before[group][field])


def test_the_command_line_wins(base, chosen):
    chosen("orin_8gb")
    explicit = {"encoder.window_s": 30.0, "device.budget_bytes": 5}
    base["encoder"]["window_s"], base["device"]["budget_bytes"] = 30.0, 5
    _device.fit(base, explicit)
    assert base["encoder"]["window_s"] == 30.0
    assert base["device"]["budget_bytes"] == 5 and base["device"]["name"] == "orin_8gb"
    assert base["features"]["batch_size"] == 8


def test_the_environment_of_the_user_wins():
    argv = ["train", "--device=orin_8gb"]
    environment = {"HOME": "/"}
    assert _device.apply(argv, environment)[VARIABLE] == environment[VARIABLE] == "false"
    environment = {VARIABLE: "true"}
    assert VARIABLE not in _device.apply(argv, environment) and environment[VARIABLE] == "true"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--device=cpu"], "cpu"),
        (["-device", "pi5_8gb"], "pi5_8gb"),
        (["--device", "nonsense"], ""),
        (["--devices=cpu"], ""),
        (["--device"], ""),
        ([], ""),
    ],
)
def test_the_flag_is_found_ahead_of_parsing(argv, name):
    assert _device.named_in(argv) == name


def test_variables_are_set_before_jax_is_imported():
    code = (
        "import os, sys; sys.argv = ['train', '--device=orin_8gb']\n"
        "from experiments import _device\n"
        "assert 'jax' not in sys.modules\n"
        "print(os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "false"


@pytest.mark.parametrize(
    ("name", "section", "root"),
    [
        ("jsonl", {"manifest": "said.jsonl", "root": ""}, ""),  # its recordings lie beside it
        ("jsonl", {"manifest": "said.jsonl", "root": "gone"}, "DATA/jsonl"),
        ("speechocean762", {"root": ""}, "DATA/speechocean762"),
        ("speechocean762", {"root": "."}, "."),
    ],
)
def test_a_run_keeps_its_corpus_where_it_is_and_finds_it_here_where_it_is_not(
    monkeypatch, name, section, root
):
    monkeypatch.setenv("TINY_ALIGN_DATA", "DATA")

    @dataclasses.dataclass(frozen=True)
    class Run:
        config: dict

    found = _main.with_local_data(Run({"dataset": {"name": name, name: section}}))
    assert found.config["dataset"][name]["root"] == root


def test_the_host_stays_visible_beside_a_named_platform():
    assert _main._with_cpu("cuda") == "cuda,cpu"
    assert [_main._with_cpu(same) for same in ("", "cpu", "cpu,cuda")] == ["", "cpu", "cpu,cuda"]
