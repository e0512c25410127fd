"""Every config file builds, stays locked, names plug-ins and keys that exist, and its sweeps do, too."""

import importlib
import inspect
import json
import pathlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

import configs
from configs import common
from configs import personalize as personalize_config
from tests.datasets import datasets_talkbank_test
from tiny_align_jax import registry, sweep
from tiny_align_jax.adapt import recipe
from tiny_align_jax.data import augment, prompts
from tiny_align_jax.train import corpus, loop, mixture, optimizer, setup
from tiny_align_jax.types import ConfigError

FOLDER = pathlib.Path(configs.__file__).parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(configs.__path__, "configs.")
    if not m.ispkg and hasattr(importlib.import_module(m.name), "get_config")
)
PLAIN_SECTIONS = {"train": loop, "optimizer": optimizer, "augment": augment, "prompt": prompts}
FRAMES, IN_DIM, OUT_DIM = 200, 512, 576


def _get_config(name):
    return importlib.import_module(name).get_config


def _arguments(name):
    """The arguments that a config documents: words in quotes in the docstring of `get_config`."""
    documented = re.findall(r"'([\w.]+)'", inspect.getdoc(_get_config(name)) or "")
    return ["", *(word for word in documented if word)]


# Configs of adaptation to a user: other sections, from a projector that is trained already.
PERSONAL = ("configs.personalize",)
CASES = [(name, arg) for name in MODULES if name not in PERSONAL for arg in _arguments(name)]
SWEEPS = [
    (name, axis)
    for name in MODULES
    for axis in sorted(vars(importlib.import_module(name)))
    if axis.startswith("sweep_")
]


def _plain(name, arg=""):
    return json.loads(_get_config(name)(arg).to_json_best_effort())


def _build(config):
    """Everything of a resolved config that can be made without data or weights."""
    for section, family in sweep.SECTIONS.items():
        registry.from_section(family, config[section])
    for section, module in PLAIN_SECTIONS.items():
        registry.make_config(module, config[section])
    second = dict(config["mixture"])
    registry.from_section("datasets", second.pop("dataset"))
    registry.make_config(mixture, second)
    module, module_config = registry.from_section("projectors", config["projector"])
    projector = module.Projector(module_config, OUT_DIM, 1.0)
    width = IN_DIM * len(config["encoder"]["layers"])
    shapes = (jnp.zeros((1, FRAMES, width)), jnp.ones((1, FRAMES), bool))
    (audio, mask), _ = jax.eval_shape(projector.init_with_output, jax.random.key(0), *shapes)
    tokens = module.num_audio_tokens(module_config, FRAMES)
    assert (audio.shape, mask.shape) == ((1, tokens, OUT_DIM), (1, tokens))


def test_every_file_is_a_config_or_says_that_it_is_none():
    files = {p.relative_to(FOLDER.parent).with_suffix("") for p in FOLDER.rglob("*.py")}
    names = {".".join(p.parts) for p in files if p.name != "__init__"}
    presets = {name for name in names if name.startswith("configs.devices.")}
    assert names - set(MODULES) - presets <= {"configs.common", "configs.tables"}
    assert {"configs.so762", "configs.quickstart"} <= set(MODULES)
    assert {"", "tiny"} <= set(_arguments("configs.so762"))


@pytest.mark.parametrize(("name", "arg"), CASES)
def test_config(name, arg):
    config = _get_config(name)(arg)
    assert isinstance(config, ConfigDict) and config.is_locked
    plain = _plain(name, arg)
    base = json.loads(common.base().to_json_best_effort())
    assert list(plain) == list(base), "sections in data-flow order, none of its own"
    for section in PLAIN_SECTIONS:
        assert set(plain[section]) == set(base[section])
    _build(plain)
    projector, projector_config = registry.from_section("projectors", plain["projector"])
    objective, _ = registry.from_section("objectives", plain["objective"])
    setup.require_fit(projector, projector_config, objective)
    with pytest.raises((AttributeError, KeyError)):
        config.train.no_such_key = 1


@pytest.mark.parametrize("method", sorted(personalize_config.METHODS))
def test_every_method_of_personalisation_makes_a_plan(method):
    plan = recipe.of_sections(_plain(PERSONAL[0], method))
    assert plan.method.trains == (method != "words")
    assert plan.method.needs_encoder == method.startswith("encoder")


@pytest.mark.parametrize("name", MODULES)
def test_unknown_arguments_are_refused(name):
    with pytest.raises(ValueError, match="'nonsense'"):
        _get_config(name)("nonsense")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_holds_the_command(name):
    module = importlib.import_module(name)
    if name.rsplit(".", 1)[-1].startswith("_"):
        return  # what other configs share; nobody runs it
    path = name.replace(".", "/") + ".py"
    doc = module.__doc__ or ""
    assert re.search(rf"python -m experiments\.\w+ .*--config={path}", doc) or "make " in doc


@pytest.mark.parametrize(("name", "axis"), SWEEPS)
def test_sweep(name, axis):
    module = importlib.import_module(name)
    axis = axis.removeprefix("sweep_")
    assert inspect.getdoc(getattr(module, f"sweep_{axis}"))
    points = sweep.expand(_plain(name), sweep.axes(module, [axis]))
    assert len(points) >= 2
    built = 0
    for point in points:
        if not sweep.why_impossible(point):  # a cell that cannot be may stand in a table, named
            _build(point.config)
            built += 1
    assert built >= 2


def test_base_shows_the_defaults_of_the_code():
    base = json.loads(common.base().to_json_best_effort())
    for section, module in PLAIN_SECTIONS.items():
        assert registry.make_config(module, base[section]) == module.Config()
    module, config = registry.from_section("projectors", base["projector"])
    assert config == module.Config()


def test_transcripts_without_a_test_set_are_dealt_into_folds(tmp_path):
    people = "abcdefg"
    for name in people:
        datasets_talkbank_test.put(
            tmp_path,
            name,
            datasets_talkbank_test.chat(
                datasets_talkbank_test.tier(f"word {name}", 0, 300), media=f"{name}, audio"
            ),
            f"{name}.wav",
        )
    scored = []
    for fold in range(5):
        config = _plain("configs.corpus", "talkbank")
        config["dataset"]["talkbank"]["root"] = str(tmp_path)
        config["split"]["fold"] = fold
        split = corpus.read_split(config | {"split": config["split"] | {"validation_speakers": 1}})
        assert len(split.train) == len(people) - 1 - len(split.test)
        scored += [u.text for u in split.test]
    assert sorted(scored) == [f"word {name}" for name in people]
    with pytest.raises(ConfigError, match=r"set split\.test to"):
        corpus.read_split(config | {"split": config["split"] | {"test": "all"}})
