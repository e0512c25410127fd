"""Sweeps as data: the product of a config's generators, one `Point` and one folder each.

A config file names its axes as generators of overrides:

    def sweep_projector():
        yield {"projector.name": "bridgeformer"}
        yield {"projector.name": "mlp", "projector.mlp.stack": 5, "label": "mlp, 5 frames"}

A key `<section>.name` that picks another plug-in brings that plug-in's defaults along; `label` names the
value in folders and reports and is optional.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from tiny_align_jax import registry
from tiny_align_jax.train import setup, through_llm
from tiny_align_jax.types import ConfigError

SECTIONS = {"dataset": "datasets", "projector": "projectors", "objective": "objectives"}
LABEL, SEED = "label", "seed"
# Read when a finished run is scored, never in training (unless the objective trains through the prompt).
_SCORING_SECTIONS = ("evaluation", "prompt")
_PREFIX = "sweep_"
_NAME_LENGTH = 48


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        index: place in the product, from 0.
        name: its folder.
        labels: short name of the value on every axis.
        overrides: what it changes in the base config.
        config: resolved sections, as plain mappings.
    """

    index: int
    name: str
    labels: Mapping[str, str]
    overrides: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def row(self) -> str:
        """Labels of all axes but the seed: points of one row are repetitions of each other."""
        kept = [label for axis, label in self.labels.items() if axis != SEED]
        return ", ".join(kept) or "base"


def axes(module: ModuleType, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Values of the named axes, from the config module's `sweep_<name>` generators.

    Raises:
        ConfigError: lists axes that do not exist, yield nothing or yield the same thing twice.
    """
    known = sorted(n.removeprefix(_PREFIX) for n in vars(module) if n.startswith(_PREFIX))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"no sweep named {', '.join(unknown) or '(none given)'} in {module.__name__}; it has: "
            f"{', '.join(known) or 'none'}"
        )
    found = {name: [dict(v) for v in getattr(module, _PREFIX + name)()] for name in names}
    problems = []
    for name, values in found.items():
        labels = [label_of(value) for value in values]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if not values:
            problems.append(f"sweep_{name} yields nothing")
        if twice:
            problems.append(
                f"sweep_{name} yields {', '.join(twice)} twice; tell them apart by 'label'"
            )
    if problems:
        raise ConfigError("; ".join(problems))
    return found


def expand(
    config: Mapping[str, Any], values: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[Point, ...]:
    """All points of the product, the last axis fastest.

    Raises:
        ConfigError: two axes set one key to different values, or a key that the config does not have;
            all of them are listed.
    """
    points, problems = [], []
    for index, chosen in enumerate(itertools.product(*values.values())):
        by_axis = dict(zip(values, chosen, strict=True))
        labels = {axis: label_of(value) for axis, value in by_axis.items()}
        try:
            overrides = _join(by_axis)
            made = apply(config, overrides)
            for section, family in SECTIONS.items():
                registry.refuse_strangers(family, made.get(section, {}))
        except ConfigError as error:
            problems.append(str(error))
            continue
        name = ",".join(f"{axis}={_slug(label)}" for axis, label in labels.items())
        points.append(Point(index, name, labels, overrides, registry.without_unread(made)))
    problems += [f"two points are both named {n}" for n in _repeated(p.name for p in points)]
    if problems:
        raise ConfigError("\n  ".join(["this sweep cannot be made:", *dict.fromkeys(problems)]))
    return tuple(points)


def apply(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plain `config` with dotted keys set; plug-in names first, so that their keys exist.

    Raises:
        ConfigError: a plug-in that does not exist; keys that the config does not have (all listed).
    """
    made = json.loads(json.dumps(config))
    ordered = sorted(overrides.items(), key=lambda item: not item[0].endswith(".name"))
    unknown = []
    for key, value in ordered:
        *path, last = key.split(".")
        _add_plugin(made, key, value)
        section = made
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            unknown.append(key)
        else:
            section[last] = json.loads(json.dumps(value))
    if unknown:
        raise ConfigError(
            f"the config has no key {', '.join(unknown)}; sections: {', '.join(sorted(made))}"
        )
    return made


def label_of(value: Mapping[str, Any]) -> str:
    """The short name of one value of an axis: its `label`, or made of what it sets."""
    if LABEL in value:
        return str(value[LABEL])
    if len(value) == 1:
        return _text(next(iter(value.values())))
    names = [_text(v) for k, v in value.items() if k.endswith(".name")]
    others = [f"{k.split('.')[-1]}={_text(v)}" for k, v in value.items() if not k.endswith(".name")]
    return " ".join(names + others)


def training_key(config: Mapping[str, Any]) -> str:
    """Equal for configs whose training is equal: points that differ in scoring alone share one run."""
    return _digest(_trained(config))


def lane_key(config: Mapping[str, Any]) -> str:
    """Equal for configs that may train as lanes of one program, see `train.lanes`.

    They differ by learning rate; by seed, too, where all batches have one padded length.
    """
    kept = _trained(config)
    kept["optimizer"] = {k: v for k, v in kept["optimizer"].items() if k != "learning_rate"}
    if kept["train"]["num_buckets"] == 1:
        del kept["seed"]
    return _digest(kept)


def _trained(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that training reads."""
    config = registry.without_unread(config)
    module = registry.resolve("objectives", config["objective"]["name"])
    left_out = _SCORING_SECTIONS if "llm" not in module.NEEDS else _SCORING_SECTIONS[:1]
    return {key: value for key, value in config.items() if key not in left_out}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def why_impossible(point: Point) -> str:
    """The reason why a point cannot exist, '' if nothing speaks against it before any data is read."""
    config = point.config
    try:
        parts = {s: registry.from_section(f, config[s]) for s, f in SECTIONS.items() if s in config}
        objective, _ = parts["objective"]
        setup.require_fit(*parts["projector"], objective)
        through_llm.vocabulary_tokenizer(objective, config["vocabulary"]["kind"], None)
    except ConfigError as error:
        return str(error)
    return ""


def _join(by_axis: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    setter: dict[str, str] = {}
    clashes = []
    for axis, value in by_axis.items():
        for key, item in value.items():
            if key == LABEL:
                continue
            if key in joined and joined[key] != item:
                clashes.append(f"sweeps {setter[key]} and {axis} both set {key}")
            joined[key], setter[key] = item, axis
    if clashes:
        raise ConfigError("; ".join(clashes) + "; put what depends on each other into one sweep")
    return joined


def _add_plugin(config: dict[str, Any], key: str, value: Any) -> None:
    """Defaults of the plug-in that `key` picks or sets a value of, if the section lacks it."""
    section, _, rest = key.partition(".")
    if section not in SECTIONS or not rest or not isinstance(config.get(section), dict):
        return
    name = value if rest == "name" else rest.split(".")[0]
    known = registry.names(SECTIONS[section])
    if rest != "name" and name not in known:
        return  # the caller lists it among the unknown keys
    if name not in config[section]:
        module = registry.resolve(SECTIONS[section], name)
        config[section][name] = json.loads(json.dumps(dataclasses.asdict(module.Config())))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slug(label: str) -> str:
    """A label as part of a folder's name; a digest keeps long ones apart."""
    plain = re.sub(r"[^A-Za-z0-9=.+_-]+", "_", label).strip("_") or "empty"
    if len(plain) <= _NAME_LENGTH:
        return plain
    return plain[: _NAME_LENGTH - 7] + "-" + hashlib.sha256(label.encode()).hexdigest()[:6]


def _repeated(names: Iterable[str]) -> list[str]:
    seen = list(names)
    return sorted({name for name in seen if seen.count(name) > 1})
