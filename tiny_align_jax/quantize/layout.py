"""How the codes and scales of a matrix lie in memory, and what they take, before there are any."""

import dataclasses
import math

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from tiny_align_jax.quantize.config import INT4, Config

_SMALLEST_GROUP = 8  # below it scales take more than codes


@dataclasses.dataclass(frozen=True)
class Layout:
    """A matrix [out, in] as codes and scales: value = (code - zero) * scale + minimum.

    Attributes:
        bits: 8 (signed bytes) or 4 (two unsigned codes a byte).
        group: inputs that share a scale.
        half: 4 bits only: byte j of a run of `half` bytes holds input j in its low and input
            j + `half` in its high nibble, of a run of twice as many inputs. GGUF packs so.
        zero: code of the value zero, for codes without a sign or a minimum.
        has_minimum: a minimum is added.
        outer_group: scales and minima are themselves 8-bit codes times a float16 for so many inputs;
            0 where they are float16.
    """

    bits: int
    group: int
    half: int = 0
    zero: int = 0
    has_minimum: bool = False
    outer_group: int = 0

    def leaves(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every array of a matrix of `shape` [..., in]."""
        *lead, width = shape
        codes = (width // 2, np.uint8) if self.bits == 4 else (width, np.int8)
        inner = np.int8 if self.outer_group else np.float16
        found = {"codes": codes, "scale": (width // self.group, inner)}
        if self.has_minimum:
            found["minimum"] = (width // self.group, inner)
        if self.outer_group:
            found["outer_scale"] = (width // self.outer_group, np.float16)
            if self.has_minimum:
                found["outer_minimum"] = (width // self.outer_group, np.float16)
        return {name: ((*lead, size), np.dtype(kind)) for name, (size, kind) in found.items()}

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a matrix of `shape`."""
        return sum(math.prod(s) * kind.itemsize for s, kind in self.leaves(shape).values())


def layout_of(width: int, kind: str, config: Config) -> Layout | None:
    """Layout of a matrix of `width` inputs that we quantise ourselves; None where it stays float."""
    group = math.gcd(width, config.group_size)
    if group < _SMALLEST_GROUP:
        return None
    if kind != INT4:
        return Layout(8, group)
    if config.minimum:
        return Layout(4, group, half=group // 2, has_minimum=True)
    return Layout(4, group, half=group // 2, zero=8)
