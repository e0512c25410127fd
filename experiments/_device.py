"""`--device=orin_8gb`: the environment of a device preset, before JAX is imported, and its config keys.

JAX and XLA read some variables when they are imported or first used, and a config file may import JAX
while flags are being parsed. So this module looks for the flag in the command line itself, when it is
imported, which `_main` does before anything that imports JAX. What the user set stays.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from absl import flags, logging

from configs import devices

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(devices.__path__)))

DEVICE = flags.DEFINE_enum(
    "device",
    "",
    ["", *NAMES],
    "Preset of configs/devices: memory budget, allocator, dtypes, lengths. Commands that train or "
    "answer refuse what does not fit the budget.",
)
flags.DEFINE_alias("preset", "device")


def preset(name: str) -> devices.Preset:
    """A preset by its file's name."""
    return importlib.import_module(f"configs.devices.{name}").PRESET


def named_in(argv: Sequence[str]) -> str:
    """Value of --device in a command line, '' if it is not there or names nothing we have."""
    found = ""
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in ("device", "preset"):
            found = value if equals else following
    return found if found in NAMES else ""


def apply(argv: Sequence[str], environment: MutableMapping[str, str]) -> dict[str, str]:
    """Sets the variables of the preset that `argv` names; returns those that were set."""
    name = named_in(argv)
    wanted = preset(name).environment if name else {}
    missing = {key: value for key, value in wanted.items() if key not in environment}
    environment.update(missing)
    return missing


def section() -> dict[str, Any]:
    """Config section `device` of the preset that was asked for; {} without one."""
    if not DEVICE.value:
        return {}
    chosen = preset(DEVICE.value)
    return {
        "name": DEVICE.value,
        "platform": chosen.platform,
        "budget_bytes": chosen.budget_bytes,
        "shared": chosen.shared,
    }


def fit(plain: MutableMapping[str, Any], explicit: Mapping[str, Any]) -> None:
    """Sets a resolved config's keys as the preset says, in place.

    Args:
        plain: resolved sections, as plain mappings.
        explicit: values that the command line set, by dotted key: they stay.
    """
    if not DEVICE.value:
        return
    chosen = preset(DEVICE.value)
    wanted = {f"device.{key}": value for key, value in section().items()}
    for key, value in {**wanted, **chosen.limits, **chosen.values}.items():
        group, _, name = key.partition(".")
        before = plain[group][name]
        after = min(before, value) if key in chosen.limits else value
        if key not in explicit and after != before:
            plain[group][name] = after
            logging.info("device %s: %s=%r instead of %r", DEVICE.value, key, after, before)


def log() -> None:
    """Tells what was set."""
    if DEVICE.value:
        shown = ", ".join(f"{key}={value}" for key, value in APPLIED.items()) or "nothing"
        logging.info("device %s: set %s in the environment", DEVICE.value, shown)


APPLIED = apply(sys.argv, os.environ)
