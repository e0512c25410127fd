"""Equal parameter counts, so that a comparison of projectors compares shapes and not sizes.

A projector module names the Config keys that make it wider in `WIDTHS`; they are scaled together.
"""

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.types import ConfigError

_TRIM = 8  # step of the last width when it is trimmed alone
_PROBE_FRAMES = 32  # parameters do not depend on the number of frames


def param_count(module: ModuleType, config: Any, in_dim: int, out_dim: int) -> int:
    """Parameters of a projector, without allocating them.

    Args:
        module: projector plug-in.
        config: its Config.
        in_dim: width E of the encoder frames (layers kept side by side count each).
        out_dim: width D of the LLM's embeddings.
    """
    projector = module.Projector(config, out_dim, 1.0)
    frames = jnp.zeros((1, _PROBE_FRAMES, in_dim))
    mask = jnp.ones((1, _PROBE_FRAMES), bool)
    shapes = jax.eval_shape(projector.init, jax.random.key(0), frames, mask)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def match_params(
    module: ModuleType,
    config: Any,
    target: int,
    in_dim: int,
    out_dim: int,
    tolerance: float = 0.02,
) -> Any:
    """`config` with its widths scaled so that the projector has about `target` parameters.

    Widths stay multiples of twice the number of heads, so that heads stay whole and of even width.

    Raises:
        ConfigError: no width comes within `tolerance` of the target (relative), or the projector has
            none; the message names the nearest count.
    """
    widths = getattr(module, "WIDTHS", ())
    if not widths:
        count = param_count(module, config, in_dim, out_dim)
        candidates = [(count, config)]
    else:
        candidates = _around(module, config, widths, target, in_dim, out_dim)
    count, found = min(candidates, key=lambda pair: abs(pair[0] - target))
    if abs(count - target) > tolerance * target:
        what = f"scaling {', '.join(widths)}" if widths else "no width of its own to scale"
        raise ConfigError(
            f"{module.__name__}: {target:,} parameters cannot be matched within {tolerance:.0%} "
            f"({what}); nearest: {count:,}. Change its depth, or the target"
        )
    return found


def _around(
    module: ModuleType, config: Any, widths: tuple[str, ...], target: int, in_dim: int, out_dim: int
) -> list[tuple[int, Any]]:
    """Counts and configs close to the target: all widths scaled, then the last one trimmed."""
    unit = 2 * getattr(config, "num_heads", 4)

    def count(values: dict[str, int]) -> tuple[int, Any]:
        made = dataclasses.replace(config, **values)
        return param_count(module, made, in_dim, out_dim), made

    def scaled(units: int) -> dict[str, int]:
        factor = units * unit / getattr(config, widths[0])
        return {key: max(1, round(getattr(config, key) * factor / unit)) * unit for key in widths}

    low = _units_below(lambda units: count(scaled(units))[0], target)
    if len(widths) == 1:
        return [count(scaled(low)), count(scaled(low + 1))]
    # Heads make the first width coarse; the feed-forward width is not, and counts are linear in it.
    base, last = scaled(low), widths[-1]
    below, _ = found = count(base)
    slope = count(base | {last: base[last] + _TRIM})[0] - below
    trim = max(0, round((target - below) / slope))
    return [found, count(base | {last: base[last] + trim * _TRIM})]


def _units_below(count_of: Callable[[int], int], target: int) -> int:
    """Largest width whose count stays at or below the target (at least 1).

    Counts are quadratic in the width, or linear; differences of whole numbers tell which, where a
    fitted curve leaves a speck of a quadratic term and with it a root far away.
    """
    at_4, at_8, at_16 = (count_of(n) for n in (4, 8, 16))
    slope, second = (at_8 - at_4) / 4, ((at_16 - at_8) / 8 - (at_8 - at_4) / 4) / 12
    # Newton's form: at_4 + slope (n - 4) + second (n - 4) (n - 8) = target
    curve = [second, slope - 12 * second, at_4 - 4 * slope + 32 * second - target]
    real = [float(r.real) for r in np.roots(curve) if abs(r.imag) < 1e-6 and r.real > 1]
    return max(1, math.floor(max(real, default=1.0) + 1e-6))
