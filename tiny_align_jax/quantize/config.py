"""Which representation a frozen model's matrices have in memory."""

import dataclasses

from tiny_align_jax.types import ConfigError

FLOAT, INT8, INT4, GGUF = "float", "int8", "int4", "gguf"
KINDS = (FLOAT, INT8, INT4, GGUF)
_TABLES = (FLOAT, INT8, INT4)
_MAX_GROUP = 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """How to hold matrices; vectors (norms, biases) and convolutions stay floating-point.

    Attributes:
        weights: 'float' as loaded; 'int8' or 'int4' quantised while loading; 'gguf' the blocks of the
            model folder's own GGUF file, bit for bit (table and head, too).
        table: the embedding table and an untied head under 'int8' and 'int4'. Four bits cost more
            there than in the layers: its rows are what the projector is matched to.
        group_size: inputs that share a scale. A matrix whose width it does not divide gets the largest
            common divisor instead.
        minimum: four-bit codes count from each group's own minimum, 16 bits more a group; without it
            they are symmetric around zero.
    """

    weights: str = FLOAT
    table: str = INT8
    group_size: int = 32
    minimum: bool = True

    def __post_init__(self):
        problems = []
        if self.weights not in KINDS:
            problems.append(f"weights={self.weights!r}; expected one of {', '.join(KINDS)}")
        if self.table not in _TABLES:
            problems.append(f"table={self.table!r}; expected one of {', '.join(_TABLES)}")
        if not 8 <= self.group_size <= _MAX_GROUP or self.group_size & (self.group_size - 1):
            problems.append(
                f"group_size={self.group_size}; expected a power of two from 8 to {_MAX_GROUP}"
            )
        if problems:
            raise ConfigError("quantize: " + "; ".join(problems))

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantised."""
        return self.weights == FLOAT

    @property
    def tag(self) -> str:
        """Short and complete, for cache keys; '' if nothing is quantised."""
        if self.is_float or self.weights == GGUF:
            return "" if self.is_float else GGUF
        minimum = "m" if self.weights == INT4 and self.minimum else ""
        return f"{self.weights}{minimum}-g{self.group_size}-{self.table}"
