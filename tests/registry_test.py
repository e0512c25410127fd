"""Plug-ins by module name: what is found, what is refused, and what the message offers instead."""

import dataclasses
import sys
import types

import pytest

import tiny_align_jax.projectors
from tiny_align_jax import registry
from tiny_align_jax.types import ConfigError

PLUGIN = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3
    shape: tuple = ((1, 2),)
"""


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3
    shape: tuple = ()


MODULE = types.SimpleNamespace(Config=Config, __name__="my.module")


def test_a_new_file_is_a_new_plugin(tmp_path, monkeypatch):
    (tmp_path / "brand_new.py").write_text(PLUGIN)
    (tmp_path / "_private.py").write_text("")
    package = tiny_align_jax.projectors
    before = registry.names("projectors")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        assert set(registry.names("projectors")) == {*before, "brand_new"}
        module, config = registry.from_section(
            "projectors", {"name": "brand_new", "brand_new": {"width": 5}}
        )
        assert module.__name__ == "tiny_align_jax.projectors.brand_new" and config.width == 5
    finally:
        sys.modules.pop("tiny_align_jax.projectors.brand_new", None)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_plugin_has_a_hashable_config_of_defaults(family):
    assert registry.names(family) == tuple(sorted(registry.names(family)))
    for name in registry.names(family):
        config_class = registry.resolve(family, name).Config
        assert config_class.__dataclass_params__.frozen, name
        if family in ("projectors", "objectives", "metrics", "datasets"):
            assert hash(config_class()) == hash(config_class())
        assert config_class.__doc__ and not config_class.__doc__.startswith("Config("), name


def test_misses_list_what_there_is():
    with pytest.raises(ConfigError, match=r"family 'projector'.*datasets, encoders, projectors"):
        registry.names("projector")
    with pytest.raises(
        ConfigError, match=r"'bridgefromer'.*bridgeformer.*create tiny_align_jax/pro"
    ):
        registry.resolve("projectors", "bridgefromer")
    with pytest.raises(ConfigError, match=r"'_blocks'"):
        registry.resolve("projectors", "_blocks")


def test_unknown_keys_are_all_named():
    with pytest.raises(
        ConfigError, match=r"my.module: unknown .* depth, wdith; known keys: shape, w"
    ):
        registry.make_config(MODULE, {"wdith": 1, "depth": 2, "width": 3})


def test_lists_become_tuples_however_deep():
    config = registry.make_config(MODULE, {"shape": [[1, 2], [3, [4]]]})
    assert config.shape == ((1, 2), (3, (4,)))
    assert hash(config)


def test_what_no_section_reads_can_be_left_out():
    mlp = {"name": "mlp", "mlp": {"stack": 5}}
    mixture = {"share": 0.5, "dataset": {"name": "jsonl", "jsonl": {}, "synthetic": {"voice": ""}}}
    config = {"seed": 1, "projector": mlp | {"linear": {"no": "matter"}}, "mixture": mixture}
    kept = {"seed": 1, "projector": mlp, "mixture": {"share": 0.5, "dataset": {"name": "jsonl", "jsonl": {}}}}  # fmt: skip
    assert registry.without_unread(config) == kept
    assert registry.without_unread(kept) == kept


def test_sections():
    module, config = registry.from_section("projectors", {"name": "linear"})
    assert config == module.Config()
    others = {"name": "linear", "mlp": {"no": "matter"}}  # a config shows all of a family
    assert registry.from_section("projectors", others)[0] is module
    with pytest.raises(ConfigError, match=r"key\(s\) stack that are no plug-in.* under 'linear'"):
        registry.from_section("projectors", {"name": "linear", "stack": 3})
    with pytest.raises(ConfigError, match=r"section 'projectors' has no 'name'.*bridgeformer"):
        registry.from_section("projectors", {"linear": {}})
