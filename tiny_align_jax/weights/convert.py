"""The engine that runs a family's mapping table over a checkpoint.

Every source name must match exactly one rule; every slot of every target must be filled exactly
once. All violations are reported together, before the first byte is read.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from tiny_align_jax.types import PyTree, Rule, WeightsError
from tiny_align_jax.weights.safetensors import named_leaves
from tiny_align_jax.weights.source import TensorSource

_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda x: x,
    "linear": lambda x: x.T,
    "conv1d": lambda x: x.transpose(2, 1, 0),
}
_ALIGNMENT = 64  # bytes
_RANKS = {"linear": 2, "conv1d": 3}


@dataclasses.dataclass(frozen=True)
class _Assignment:
    """One source tensor and the slot it fills."""

    source: str
    target: str
    layer: int | None
    rule: Rule

    @property
    def slot(self) -> str:
        return self.target if self.layer is None else f"{self.target}[{self.layer}]"


@dataclasses.dataclass
class _Problems:
    """Everything wrong between a checkpoint and a model, by kind."""

    kinds: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, item: str) -> None:
        self.kinds.setdefault(kind, []).append(item)

    def raise_if_any(self) -> None:
        if not self.kinds:
            return
        lines = [
            f"  {kind} ({len(x)}): {', '.join(_collapsed(x))}" for kind, x in self.kinds.items()
        ]
        raise WeightsError(
            "the checkpoint does not fit the model:\n"
            + "\n".join(lines)
            + "\nEither config.json belongs to other weights, or the family's PARAM_MAP lacks a rule."
        )


def _collapsed(items: Sequence[str]) -> list[str]:
    """The same thing in many layers as one entry: 'layers.{0,1,2}.mlp.up_proj.weight'."""
    layers: dict[str, list[str]] = {}
    for item in items:
        layer = re.search(r"(?<=\.)\d+(?=\.)|(?<=\[)\d+(?=\])", item)
        number = layer.group() if layer else ""
        # every later mention of the same layer too: 'layers.3.a -> a[3]'
        pattern = re.sub(rf"\b{number}\b(?=[.\]])", "{}", item) if layer else item
        layers.setdefault(pattern, []).append(number)
    return [
        pattern.replace("{}", _numbers(numbers)) if len(numbers) > 1 or numbers[0] else pattern
        for pattern, numbers in sorted(layers.items())
    ]


def _numbers(numbers: Sequence[str]) -> str:
    """'7', '{0,3,4}' or '{0..17}'."""
    values = sorted({int(n) for n in numbers})
    if len(values) == 1:
        return str(values[0])
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}"


class Store(Protocol):
    """Where one target's tensors go: an array, or a representation of it."""

    value: Any  # what stands in the parameter tree once all is put

    def put(self, source: TensorSource, name: str, layer: int | None, rule: Rule) -> None:
        """Reads tensor `name` into slot `layer` (None: the only one)."""
        ...


# Sources of a target, its shape, and the rule of one of them -> its store, or None for a plain array.
MakeStore = Callable[[Sequence[str], jax.ShapeDtypeStruct, Rule], Store | None]


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """A numpy array, allocated untouched, that starts where JAX on a CPU takes it over without a copy.

    Of numpy's own, most start at other addresses: copied, they are held twice while an LLM is loaded (Qwen2.5-0.5B:
    2 GB more).
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


class ArrayStore:
    """A numpy array that is filled in place."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype):
        self.value = empty(shape, dtype)

    def put(self, source: TensorSource, name: str, layer: int | None, rule: Rule) -> None:
        target = self.value if layer is None else self.value[layer]
        # casts while copying: no temporary in the target's dtype or layout
        target[...] = _transform(rule)(source.read(name))


def convert(
    source: TensorSource,
    param_map: Sequence[Rule],
    target_shapes: PyTree,
    dtype: np.dtype | type | str | None = None,
    make_store: MakeStore | None = None,
    place: Callable[[str, Any], Any] = lambda name, value: value,
) -> PyTree:
    """Reads a checkpoint into the parameter tree of our model, one tensor at a time.

    Targets are filled in place, that of the largest tensors first: their mapped pages are gone again
    before the total has grown, so peak memory stays near the result's size.

    Args:
        source: the checkpoint.
        param_map: the family's table (`types.Rule`).
        target_shapes: tree of shapes and dtypes, from `jax.eval_shape` of the model's `init`.
        dtype: of the result's floating-point leaves; None takes `target_shapes`' own.
        make_store: decides which targets are not plain arrays; None: all are.
        place: called with a target's name and what it holds as soon as it is filled: what goes to a device then need not
            wait for the rest in the host's memory.

    Returns:
        `target_shapes`' tree with numpy arrays, or what other stores hold, as `place` returned it.

    Raises:
        WeightsError: missing, unexpected, doubly matched or wrongly shaped names, all of them.
    """
    shapes = dict(named_leaves(target_shapes))
    by_target = _by_target(_assign(source, param_map, shapes))

    def largest(target: str) -> int:
        return max(math.prod(source.shape(a.source)) for a in by_target[target])

    values = {}
    for target in sorted(by_target, key=largest, reverse=True):
        shape, parts = shapes[target], by_target[target]
        store = _store(make_store, parts, shape)
        store = store or ArrayStore(shape.shape, _dtype(shape.dtype, dtype))
        for a in parts:
            store.put(source, a.source, a.layer, a.rule)
        values[target] = place(target, store.value)
        del store
    return _tree(target_shapes, values)


def shapes_of(
    source: TensorSource,
    param_map: Sequence[Rule],
    target_shapes: PyTree,
    dtype: np.dtype | type | str | None = None,
    make_store: MakeStore | None = None,
) -> PyTree:
    """Shapes and dtypes of what `convert` returns; `make_store`'s values have to be such themselves."""
    shapes = dict(named_leaves(target_shapes))
    values = {}
    for target, parts in _by_target(_assign(source, param_map, shapes)).items():
        shape = shapes[target]
        store = _store(make_store, parts, shape)
        plain = jax.ShapeDtypeStruct(shape.shape, _dtype(shape.dtype, dtype))
        values[target] = store.value if store else plain
    return _tree(target_shapes, values)


def _by_target(assignments: Sequence[_Assignment]) -> dict[str, list[_Assignment]]:
    found: dict[str, list[_Assignment]] = {}
    for a in assignments:
        found.setdefault(a.target, []).append(a)
    return found


def _store(
    make_store: MakeStore | None, parts: Sequence[_Assignment], shape: jax.ShapeDtypeStruct
) -> Store | None:
    """What `make_store` wants for a target; None for a plain array."""
    return make_store([a.source for a in parts], shape, parts[0].rule) if make_store else None


def _tree(target_shapes: PyTree, values: Mapping[str, Any]) -> PyTree:
    names = [name for name, _ in named_leaves(target_shapes)]
    return jax.tree.unflatten(jax.tree.structure(target_shapes), [values[n] for n in names])


def _assign(
    source: TensorSource, param_map: Sequence[Rule], shapes: dict[str, jax.ShapeDtypeStruct]
) -> list[_Assignment]:
    problems = _Problems()
    rules = [(re.compile(rule.source), rule) for rule in param_map]
    assignments: list[_Assignment] = []
    for name in source.names():
        matches = [(m, rule) for pattern, rule in rules if (m := pattern.fullmatch(name))]
        if len(matches) != 1:
            kind = "matched by several rules" if matches else "unexpected"
            problems.add(kind, name)
        elif matches[0][1].target is not None:
            assignments.append(_assignment(name, *matches[0]))
    assignments = [a for a in assignments if _is_possible(a, source, shapes, problems)]
    _check_slots(assignments, shapes, problems)
    problems.raise_if_any()
    return assignments


def _assignment(name: str, match: re.Match[str], rule: Rule) -> _Assignment:
    layer = match.groupdict().get("layer")
    return _Assignment(name, str(rule.target), None if layer is None else int(layer), rule)


def _is_possible(
    a: _Assignment,
    source: TensorSource,
    shapes: dict[str, jax.ShapeDtypeStruct],
    problems: _Problems,
) -> bool:
    """Whether the slot exists; a wrong shape is reported but fills its slot all the same."""
    if a.target not in shapes:
        problems.add("mapped to a parameter the model does not have", f"{a.source} -> {a.target}")
        return False
    shape = tuple(shapes[a.target].shape)
    if a.layer is not None:
        if not shape or a.layer >= shape[0]:
            problems.add("of a layer the model does not have", f"{a.source} -> {a.slot} of {shape}")
            return False
        shape = shape[1:]
    given = _transformed_shape(a.rule, source.shape(a.source))
    if given is not None and given != shape:
        problems.add(
            "of the wrong shape", f"{a.source} {source.shape(a.source)} -> {a.slot} {shape}"
        )
    return True


def _check_slots(
    assignments: Sequence[_Assignment],
    shapes: dict[str, jax.ShapeDtypeStruct],
    problems: _Problems,
) -> None:
    filled: dict[str, dict[int | None, list[str]]] = {name: {} for name in shapes}
    for a in assignments:
        filled[a.target].setdefault(a.layer, []).append(a.source)
    for target, slots in filled.items():
        stacked = any(layer is not None for layer in slots)
        expected = range(shapes[target].shape[0]) if stacked else (None,)
        for slot in expected:
            if slot not in slots:
                problems.add("missing", target if slot is None else f"{target}[{slot}]")
        for slot, names in slots.items():
            if len(names) > 1 or slot not in expected:
                problems.add("filling one slot twice", f"{' and '.join(names)} -> {target}")


def _transform(rule: Rule) -> Callable[[np.ndarray], np.ndarray]:
    if callable(rule.transform):
        return rule.transform
    if rule.transform not in _TRANSFORMS:
        raise WeightsError(
            f"rule {rule.source!r} has transform {rule.transform!r}; known: {', '.join(_TRANSFORMS)}, "
            "or a function"
        )
    return _TRANSFORMS[rule.transform]


def _transformed_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape after the transform, without data; the given one if the rank is already wrong."""
    if not callable(rule.transform) and len(shape) != _RANKS.get(rule.transform, len(shape)):
        return shape
    # a zero-stride stand-in: transforms that only move axes touch no memory
    stand_in = np.broadcast_to(np.float32(0), shape)
    return tuple(_transform(rule)(stand_in).shape)


def _dtype(own: np.dtype, wanted: np.dtype | type | str | None) -> np.dtype:
    is_float = jax.numpy.issubdtype(own, jax.numpy.floating)
    return np.dtype(own if wanted is None or not is_float else wanted)
