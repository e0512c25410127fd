"""What a user changes of a base projector: a flat dictionary of small arrays, and how it is applied.

Keys are `<kind>:<parameter>`, parameters are named as in the base's tree `{'projector', 'objective'}` with,
for methods that reach into it, `'encoder'` beside them:
    offset:<name>          added to the parameter
    a:<name>, b:<name>     a low-rank product added to a matrix (Hu et al. 2021, "LoRA"); one a layer where
                           layers are stacked
    frames:scale, :shift   an affine change of every channel of the encoder's frames, the diagonal form of
                           constrained MLLR (Gales 1998); the shift alone is a speaker vector
Everything starts where it changes nothing.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tiny_align_jax import aligner, checks
from tiny_align_jax.train.partition import leaf_names, path_name
from tiny_align_jax.types import Array, ConfigError, PyTree

Delta = dict[str, Array]
FRAMES = ("none", "shift", "affine")
_FRAMES = "frames:"
_OBJECTIVE = "objective/"
_STACK = "layers/"  # parameters of scanned layers have a leading axis


@dataclasses.dataclass(frozen=True)
class Method:
    """Which parameters a user's copy differs in.

    Attributes:
        offsets: patterns (whole names) of parameters that get an offset of full size.
        low_rank: patterns of matrices that get a low-rank product.
        rank: of the products.
        frames: 'none', 'shift' or 'affine' on the encoder's frames.
    """

    offsets: tuple[str, ...] = ()
    low_rank: tuple[str, ...] = ()
    rank: int = 4
    frames: str = "none"

    def __post_init__(self):
        problems = checks.unlisted(self, frames=FRAMES)
        checks.refuse("method", [*problems, *checks.below(self, 1, "rank")])

    @property
    def trains(self) -> bool:
        """Whether anything is adapted at all; a user's words may be all that is wanted."""
        return bool(self.offsets or self.low_rank or self.frames != "none")

    @property
    def needs_encoder(self) -> bool:
        """Whether a pattern reaches into the encoder, which is then part of the step."""
        return any(p.startswith("encoder/") for p in (*self.offsets, *self.low_rank))


def init(method: Method, params: PyTree, feature_dim: int, key: Array) -> Delta:
    """A delta that changes nothing yet.

    Args:
        method: what trains.
        params: the base's tree.
        feature_dim: width of the encoder's frames.
        key: of the low-rank factors.

    Raises:
        ConfigError: a pattern that matches nothing, a low-rank pattern on what is no matrix, or nothing
            to train.
    """
    shapes = dict(zip(leaf_names(params), map(jnp.shape, jax.tree.leaves(params)), strict=True))
    delta: Delta = {f"offset:{n}": jnp.zeros(shapes[n]) for n in _matching(method.offsets, shapes)}
    for i, name in enumerate(_matching(method.low_rank, shapes)):
        stack, rows, columns = _as_matrix(name, shapes[name])
        a = jax.random.normal(jax.random.fold_in(key, i), (*stack, rows, method.rank))
        delta[f"a:{name}"] = a / math.sqrt(rows)
        delta[f"b:{name}"] = jnp.zeros((*stack, method.rank, columns))
    if method.frames != "none":
        delta["frames:shift"] = jnp.zeros(feature_dim)
    if method.frames == "affine":
        delta["frames:scale"] = jnp.zeros(feature_dim)
    if not delta:
        raise ConfigError("nothing to adapt: name offsets, low_rank or frames")
    return delta


def apply(params: PyTree, delta: Delta) -> PyTree:
    """The user's parameters: the base's tree plus the delta."""

    def change(path, leaf):
        name = path_name(path)
        if f"offset:{name}" in delta:
            leaf = leaf + delta[f"offset:{name}"].astype(leaf.dtype)
        if f"a:{name}" in delta:
            product = delta[f"a:{name}"] @ delta[f"b:{name}"]
            leaf = leaf + product.reshape(jnp.shape(leaf)).astype(leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(change, params)


def mean(deltas: Sequence[Delta]) -> Delta:
    """Several copies of one user in one: the mean of what each adds to the base, exactly.

    Low-rank products are laid side by side, so that their rank is the sum of all. Works for stacked jobs, too.
    """
    made = {}
    for name in deltas[0]:
        parts = [delta[name] for delta in deltas]
        if name.startswith("a:"):
            made[name] = jnp.concatenate(parts, axis=-1)
        elif name.startswith("b:"):
            made[name] = jnp.concatenate(parts, axis=-2) / len(parts)
        else:
            made[name] = sum(parts) / len(parts)
    return made


def change_frames(delta: Delta, features_BTE: Array) -> Array:
    """Encoder frames as the user's projector takes them; unchanged where the delta has no frames part."""
    return aligner.change_frames(frames_part(delta), features_BTE)


def frames_part(delta: Delta) -> Delta:
    """'scale' and 'shift' of a delta, as far as it has them."""
    return {k.removeprefix(_FRAMES): v for k, v in delta.items() if k.startswith(_FRAMES)}


def _matching(patterns: tuple[str, ...], names) -> list[str]:
    found = {p: [n for n in names if re.fullmatch(p, n)] for p in patterns}
    # The paper's objective has no parameters: what is asked of them is asked of nothing.
    bare = not any(name.startswith(_OBJECTIVE) for name in names)
    empty = [p for p, m in found.items() if not m and not (bare and p.startswith(_OBJECTIVE))]
    if empty:
        raise ConfigError(
            f"pattern(s) {', '.join(empty)} match no parameter; there are: {', '.join(names)}"
        )
    return sorted({name for matched in found.values() for name in matched})


def _as_matrix(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(stacked axes, rows, columns) of a kernel; heads belong to whichever side they stand on."""
    num_stacked = 1 if _STACK in name else 0
    stack, core = shape[:num_stacked], shape[num_stacked:]
    if len(core) < 2 or not name.endswith("kernel"):
        raise ConfigError(f"low_rank: {name} of shape {shape} is no matrix; use offsets for it")
    # [heads, width, out] of an attention's last product, [in, heads, width] of its first three.
    num_rows = 2 if len(core) == 3 and name.endswith("/out/kernel") else 1
    return stack, math.prod(core[:num_rows]), math.prod(core[num_rows:])
