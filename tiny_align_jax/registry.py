"""Plug-ins found by module name: a new file in a family's folder is a new plug-in.

Every plug-in module exposes a frozen dataclass `Config` that holds all its defaults, and the fixed
names of its family (listed in docs/architecture.md).
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from tiny_align_jax.types import ConfigError

FAMILIES = ("datasets", "encoders", "projectors", "objectives", "llms", "metrics")


def names(family: str) -> tuple[str, ...]:
    """Sorted plug-in names of `family`: its modules without a leading underscore.

    Raises:
        ConfigError: `family` is not one of FAMILIES.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown plug-in family {family!r}; families: {', '.join(FAMILIES)}")
    package = importlib.import_module(f"tiny_align_jax.{family}")
    modules = pkgutil.iter_modules(package.__path__)
    return tuple(sorted(m.name for m in modules if not m.name.startswith("_")))


def resolve(family: str, name: str) -> ModuleType:
    """The module of plug-in `name`; a miss lists what exists.

    Raises:
        ConfigError: no such plug-in.
    """
    known = names(family)
    if name not in known:
        raise ConfigError(
            f"unknown {family} plug-in {name!r}; there are: {', '.join(known)}. "
            f"To add one, create tiny_align_jax/{family}/{name}.py (see docs/architecture.md)."
        )
    return importlib.import_module(f"tiny_align_jax.{family}.{name}")


def make_config(module: ModuleType, values: Mapping[str, Any]) -> Any:
    """`module.Config(**values)`; lists become tuples so that configs stay hashable.

    Raises:
        ConfigError: a key that `module.Config` does not have; the message lists the keys it has.
    """
    return make_dataclass(module.Config, values, module.__name__)


def make_dataclass(kind: type, values: Mapping[str, Any], where: str = "") -> Any:
    """`kind(**values)` as `make_config` makes it; `where` names the section in errors."""
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{where or kind.__name__}: unknown config key(s) {', '.join(unknown)}; "
            f"known keys: {', '.join(sorted(known)) or 'none'}"
        )
    return kind(**{k: _hashable(v) for k, v in values.items()})


def from_section(family: str, section: Mapping[str, Any]) -> tuple[ModuleType, Any]:
    """Module and Config of a config section `{'name': n, n: {overrides}}`.

    Sub-sections of other plug-ins may stand beside it (a config shows all of a family) and are not read.

    Raises:
        ConfigError: no name, unknown plug-in, unknown key, or a sub-section that is no plug-in of the
            family.
    """
    if "name" not in section:
        raise ConfigError(
            f"section {family!r} has no 'name'; set it to one of: {', '.join(names(family))}"
        )
    name = section["name"]
    module = resolve(family, name)
    refuse_strangers(family, section)
    return module, make_config(module, section.get(name) or {})


def refuse_strangers(family: str, section: Mapping[str, Any]) -> None:
    """Does nothing if all sub-sections are plug-ins of the family.

    Raises:
        ConfigError: names those that are none.
    """
    strangers = sorted(set(section) - {"name"} - set(names(family)))
    if strangers:
        raise ConfigError(
            f"section {family!r} has key(s) {', '.join(strangers)} that are no plug-in; put the "
            f"plug-in's own keys under {section.get('name')!r}. Plug-ins: {', '.join(names(family))}"
        )


def without_unread(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what `from_section` does not read: sub-sections of plug-ins that are not named."""
    kept = {}
    for key, value in config.items():
        is_read = not isinstance(value, Mapping) or "name" not in config or key == config["name"]
        if is_read:
            kept[key] = without_unread(value) if isinstance(value, Mapping) else value
    return kept


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(v) for v in value)
    return value
