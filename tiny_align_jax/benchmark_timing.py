"""How benchmarks measure: medians after warm-up, the machine's ceilings, counted work, the floor they give.

A floor is the larger of two times: counted FLOPs of matrix products over the rate of a large product
measured here, and bytes that must move over the rate of a large copy measured here.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        case: what was run.
        size: key of `benchmark_sizes.SIZES`.
        variant: what distinguishes it from the case's other rows.
        seconds: median of one unit of work (a step, a token of every row, an encoder call).
        low_s: 10th percentile. high_s: 90th percentile. repeats: number of measurements.
        flops: of matrix products in one unit of work.
        num_bytes: that one unit of work must at least move to or from memory.
        dtype: of the products: which ceiling applies.
        framework: 'jax', or 'torch' with its mode.
        facts: further figures, by name with unit.
    """

    case: str
    size: str
    variant: str
    seconds: float
    low_s: float = 0.0
    high_s: float = 0.0
    repeats: int = 1
    flops: float = 0.0
    num_bytes: float = 0.0
    dtype: str = "float32"
    framework: str = "jax"
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure(call: Callable[[], Any], budget_s: float = 2.0, repeats: int = 30) -> dict[str, Any]:
    """Times of `call`, whose result is waited for: median, 10th and 90th percentile.

    Two calls warm up; then at most `repeats` calls within about `budget_s`, but never fewer than three.
    """
    for _ in range(2):
        jax.block_until_ready(call())
    times: list[float] = []
    began_s = time.perf_counter()
    while len(times) < 3 or (len(times) < repeats and time.perf_counter() - began_s < budget_s):
        start_s = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start_s)
    low, median, high = np.quantile(times, (0.1, 0.5, 0.9))
    return {
        "seconds": float(median), "low_s": float(low), "high_s": float(high), "repeats": len(times)
    }  # fmt: skip


def per(times: dict[str, Any], count: int) -> dict[str, Any]:
    """Times of one of the `count` units of work that a measured call did."""
    return {k: v / count if k != "repeats" else v for k, v in times.items()}


def ceilings(size: Size, size_name: str) -> list[Row]:
    """Rates that this machine reaches, and what it is.

    The facts are bytes read plus written a second by a large copy, and FLOP/s of a large product by dtype.
    """
    miniature = size.features_dim < 128  # a test's size
    scale = 1 if miniature else 64 if is_accelerator() else 8
    num_bytes, width = scale * 2**24, 128 * min(scale, 64) if not miniature else 128
    source = jnp.ones((num_bytes // 4,), jnp.float32)
    copies = [jax.jit(jnp.copy), jax.jit(lambda x: x + 1)]
    times = min((measure(lambda f=f: f(source)) for f in copies), key=lambda t: t["seconds"])
    facts: dict[str, Any] = {"copy_bytes_per_s": 2 * num_bytes / times["seconds"]}
    multiply = jax.jit(jnp.matmul)
    for dtype in ("float32", "bfloat16") if is_accelerator() else ("float32",):
        x = jax.random.normal(jax.random.key(0), (width, width), dtype)
        product = measure(lambda x=x: multiply(x, x))
        facts[f"{dtype}_flops_per_s"] = 2 * width**3 / product["seconds"]
    device = jax.devices()[0]
    facts |= {"accelerator": is_accelerator(), "machine": machine(device)}
    return [Row("ceilings", size_name, f"{num_bytes} bytes, width {width}", facts=facts, **times)]


def machine(device: Any) -> str:
    """Device, cores and versions in one line."""
    return (
        f"{device.device_kind}, {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}, "
        f"JAX {jax.__version__}, Python {platform.python_version()}"
    )


def is_accelerator() -> bool:
    """False on a CPU, where bfloat16 is slow."""
    return jax.default_backend() != "cpu"


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays (or shapes) in a tree."""
    return sum(int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def count_flops(function: Callable, *args) -> float:
    """FLOPs of matrix products and convolutions in one call, from the program before compilation.

    XLA's own count reads a loop's body once; here a scan counts as often as it runs, a while loop once, and
    of alternatives the largest.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # What nobody reads is never run: gradients of frozen matrices, a third of a step through an LLM.
    return _flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _flops(jaxpr) -> float:
    return sum(_equation_flops(eqn) for eqn in jaxpr.eqns)


def _equation_flops(eqn) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        depth = np.prod([eqn.invars[0].aval.shape[axis] for axis in contract])
        return 2.0 * float(depth) * float(np.prod(eqn.outvars[0].aval.shape))
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"].rhs_spec
        kernel = eqn.invars[1].aval.shape
        depth = np.prod([kernel[axis] for axis in spec[1:]])
        return 2.0 * float(depth) * float(np.prod(eqn.outvars[0].aval.shape))
    inner = [_flops(j) for value in params.values() for j in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner)


def _jaxprs(value: Any) -> list:
    if isinstance(value, list | tuple):
        return [j for item in value for j in _jaxprs(item)]
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, core.Jaxpr) else []
