"""What encoder families share: attention, norms, the scanned layer stack, padding to a window."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tiny_align_jax import attention
from tiny_align_jax.types import Array, AudioError, ConfigError, QuantisedWeight

LAYER_NORM_EPSILON = 1e-5


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU in float32: the tanh form moves real Whisper frames by 0.03 to 0.25.

    JAX's exact form takes erfc, which evaluates three expansions at every value and keeps one: 201 us a layer
    of Whisper base, where reading and writing its bytes takes 112 (H100), and 2.4 times the CPU's time.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * 2**-0.5))).astype(x.dtype)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Layer norm with float32 statistics.

    The two-pass variance is deliberate: E[x^2] - E[x]^2 cancels on the massive activations that
    trained speech encoders have.
    """
    return nn.LayerNorm(LAYER_NORM_EPSILON, dtype=dtype, use_fast_variance=False, name=name)


class Dense(nn.Module):
    """A linear layer with parameters `kernel` [in, out] and `bias` [out].

    A quantised matrix may stand in the kernel's place.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        x = jnp.asarray(x, self.dtype)
        # flax's check of stored shapes only knows arrays, so a quantised kernel goes round it.
        kernel = self.get_variable("params", "kernel")
        if isinstance(kernel, QuantisedWeight):
            y = jnp.asarray(kernel.matmul(x))
        else:
            init = nn.initializers.lecun_normal()
            kernel = self.param("kernel", init, (x.shape[-1], self.features))
            y = x @ jnp.asarray(kernel, x.dtype)
        if self.use_bias:
            y += jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,)), y.dtype)
        return y


class Attention(nn.Module):
    """Multi-head self-attention over all valid frames, softmax in float32.

    Attributes:
        num_heads: H; the width must be a multiple of it.
        dtype: of the products.
        key_bias: False for Whisper, whose keys have no bias.
    """

    num_heads: int
    dtype: Any
    key_bias: bool = True

    @nn.compact
    def __call__(
        self, x_BTE: Array, mask_BT: Array | None = None, bias_BHTT: Array | None = None
    ) -> jax.Array:
        """Attended frames [B, T, E]; `bias_BHTT` is added to the scaled scores."""
        width = x_BTE.shape[-1]

        def project(name: str, use_bias: bool = True) -> jax.Array:
            y = Dense(width, use_bias, dtype=self.dtype, name=name)(x_BTE)
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        q, k, v = project("query"), project("key", self.key_bias), project("value")
        if bias_BHTT is None:
            attended_BTHK = attention.attend(q, k, v, mask_BT)
        else:
            mask = None if mask_BT is None else mask_BT[:, None, None, :]
            attended_BTHK = jax.nn.dot_product_attention(q, k, v, bias=bias_BHTT, mask=mask)
        return Dense(width, dtype=self.dtype, name="out")(attended_BTHK.reshape(x_BTE.shape))


def wanted_layers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """Hidden-state indices in 0..num_layers; None means all, negative ones count from the end.

    Raises:
        ConfigError: none asked for, or an index out of range; all bad ones are named.
    """
    if layers is None:
        return tuple(range(num_layers + 1))
    bad = [i for i in layers if not -num_layers - 1 <= i <= num_layers]
    if bad or not layers:
        raise ConfigError(
            f"encoder layers {bad or list(layers)} do not exist: this checkpoint has hidden states "
            f"0 (before the first layer) to {num_layers} (final output); name at least one of them"
        )
    return tuple(i % (num_layers + 1) for i in layers)


def run_layers(
    layer: nn.Module,
    num_layers: int,
    x_BTE: jax.Array,
    wanted: Collection[int],
    dtype: Any,
    *shared: Any,
) -> dict[int, jax.Array]:
    """Scans `layer` (called as `layer(x_BTE, *shared)`) and keeps only the wanted hidden states.

    The parameters of all layers are stacked on a leading axis, so one layer is compiled, not
    `num_layers`. States in between are written into a buffer of exactly the wanted size, and
    layers above the highest wanted one are not run (while initialising, all are).

    The residual stream is float32 whatever the layers compute in: trained encoders carry
    activations in the hundreds, where bfloat16 has steps of 2 (Whisper base: half the error).

    Args:
        layer: unbound module whose name becomes the stack's name in the parameter tree.
        num_layers: depth of the stack.
        x_BTE: input of the first layer.
        wanted: indices in 0..num_layers; 0 is `x_BTE` itself.
        dtype: of the states kept in between.
        shared: further arguments, the same for every layer.

    Returns:
        Hidden states [B, T, E] by index; the highest index is the output of the last layer run,
        float32.
    """
    depth = num_layers if layer.is_initializing() else max(wanted)
    between = sorted(i for i in set(wanted) if 0 < i < depth)
    slots_L = np.full(depth, len(between), np.int32)  # out of range: not kept
    slots_L[[i - 1 for i in between]] = np.arange(len(between))

    def step(layer, carry, slot):
        x, kept = carry
        x = layer(x, *shared)
        kept = kept.at[slot].set(x.astype(dtype), mode="drop") if between else kept
        return (x, kept), None

    def scan(layer, carry):
        scanned = nn.scan(
            step, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth
        )
        return scanned(layer, carry, slots_L)[0]

    if depth < num_layers:
        scan = nn.map_variables(
            scan, "params", lambda tree: jax.tree.map(lambda leaf: leaf[:depth], tree)
        )
    x_BTE = x_BTE.astype(jnp.float32)
    states = {0: x_BTE}
    if depth:
        last, kept = scan(layer, (x_BTE, jnp.zeros((len(between), *x_BTE.shape), dtype)))
        states |= dict(zip(between, kept, strict=True)) | {depth: last}
    return states


def pad_to_window(waveform_S: np.ndarray, window_samples: int) -> np.ndarray:
    """The waveform as float32 followed by silence up to `window_samples`.

    Raises:
        AudioError: not one-dimensional, empty, or longer than the window.
    """
    waveform_S = np.asarray(waveform_S, np.float32)
    if waveform_S.ndim != 1 or not 0 < waveform_S.size <= window_samples:
        raise AudioError(
            f"waveform of shape {waveform_S.shape} does not fit a window of {window_samples} "
            "samples; give one channel of 1 to that many samples (or a longer window)"
        )
    return np.pad(waveform_S, (0, window_samples - waveform_S.size))
