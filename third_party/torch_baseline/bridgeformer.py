"""BridgeFormer in PyTorch: the architecture of `tiny_align_jax.projectors.bridgeformer`, one module a layer.

Weights travel both ways as safetensors (`load`, `save`): every array of a trained workdir's
`projector.safetensors` is a view of one parameter here, so one table serves both directions.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

_EPS = 1e-6  # Flax's LayerNorm


class Mlp(nn.Module):
    """Linear, GELU (tanh form, as in Flax), linear."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.up, self.down = nn.Linear(in_dim, hidden_dim), nn.Linear(hidden_dim, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Attention(nn.Module):
    """Multi-head attention through SDPA; queries, keys and values come out of one product."""

    def __init__(self, dim: int, num_heads: int, rotary: bool = False):
        super().__init__()
        self.num_heads, self.rotary = num_heads, rotary
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(
        self, x_BAD: torch.Tensor, mask_BA: torch.Tensor, queries_BQD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attends over the valid places of `x_BAD`; queries are made from it unless given."""
        if queries_BQD is None:
            q, k, v = self._heads(self.qkv(x_BAD), 3)
        else:
            dim = x_BAD.shape[-1]
            weight, bias = (
                self.qkv.weight.split([dim, 2 * dim]),
                self.qkv.bias.split([dim, 2 * dim]),
            )
            (q,) = self._heads(F.linear(queries_BQD, weight[0], bias[0]), 1)
            k, v = self._heads(F.linear(x_BAD, weight[1], bias[1]), 2)
        if self.rotary:
            q, k = _rotate(q), _rotate(k)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BA[:, None, None])
        return self.out(out.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """[B, A, count * D] as `count` tensors [B, H, A, K]."""
        return x.unflatten(-1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class EncoderLayer(nn.Module):
    """Pre-norm layer, `nn.TransformerEncoderLayer(norm_first=True)` with dropout on the residuals only."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, rotary: bool):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, _EPS), nn.LayerNorm(dim, _EPS)
        self.attention = Attention(dim, num_heads, rotary)
        self.mlp = Mlp(dim, mlp_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask_BA: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask_BA))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class BridgeFormer(nn.Module):
    """Encoder frames [B, T, E] to audio tokens [B, A, D]."""

    def __init__(self, values: Mapping[str, Any], in_dim: int, out_dim: int, out_rms: float):
        """Args: keys of the JAX projector's Config, all of them; widths; the table's row RMS."""
        super().__init__()
        c = self.values = dict(values)
        dim = c["dim"]
        self.input_mlp = Mlp(in_dim * c["stack"], dim, dim)
        self.input_dropout = nn.Dropout(c["dropout"])
        rotary = c["positions"] == "rotary"
        self.layers = nn.ModuleList(
            EncoderLayer(dim, c["num_heads"], c["mlp_dim"], c["dropout"], rotary)
            for _ in range(c["num_layers"])
        )
        self.encoder_norm = nn.LayerNorm(dim, _EPS)
        self.output_mlp = Mlp(dim, c["mlp_dim"], out_dim)
        self.output_scale = nn.Parameter(torch.full((out_dim,), out_rms))
        if c["positions"] == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(c["max_positions"], dim))
        if c["pooling"] == "window":
            self.empty = nn.Parameter(torch.randn(dim))
        if c["pooling"] == "attention":
            self.queries = nn.Parameter(torch.randn(c["num_tokens"], dim))
            self.pool = Attention(dim, c["num_heads"])
        for module in self.modules():
            if isinstance(module, nn.Linear):  # Flax's default: truncated LeCun normal, zero bias
                std = 1 / math.sqrt(module.in_features) / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(
        self, features_BTE: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio tokens, float32, and which of them are valid."""
        x, mask_BA = self._stack(features_BTE, num_frames_B)
        x = self.input_mlp(x)
        x = self.input_dropout(self._add_positions(x))
        for layer in self.layers:
            x = layer(x, mask_BA)
        x, mask_BA = self._pool(self.encoder_norm(x), mask_BA)
        x = self.output_mlp(x).float()
        return x * torch.rsqrt(
            x.square().mean(-1, keepdim=True) + _EPS
        ) * self.output_scale, mask_BA

    def num_audio_tokens(self, num_frames_B: torch.Tensor) -> torch.Tensor:
        """Valid audio tokens of so many frames."""
        c = self.values
        if c["pooling"] in ("adaptive", "window", "attention"):
            return torch.full_like(num_frames_B, c["num_tokens"])
        tokens_B = -(-num_frames_B // c["stack"])
        return -(-tokens_B // c["pool_stride"]) if c["pooling"] == "stride" else tokens_B

    def _stack(self, features_BTE: torch.Tensor, num_frames_B: torch.Tensor):
        """Neighbouring frames become one token; what lies behind an utterance becomes zero."""
        stack, frames = self.values["stack"], features_BTE.shape[1]
        valid_BT = torch.arange(frames, device=features_BTE.device) < num_frames_B[:, None]
        x = features_BTE.to(self.input_mlp.up.weight.dtype).masked_fill(~valid_BT[..., None], 0)
        x = F.pad(x, (0, 0, 0, -frames % stack))
        mask_BT = F.pad(valid_BT, (0, -frames % stack))
        return x.unflatten(1, (-1, stack)).flatten(2), mask_BT.unflatten(1, (-1, stack)).any(-1)

    def _add_positions(self, x: torch.Tensor) -> torch.Tensor:
        kind, length = self.values["positions"], x.shape[1]
        if kind == "sinusoidal":
            return x + _sinusoids(length, x.shape[2], x.device).to(x.dtype)
        return x + self.positions[:length] if kind == "learned" else x

    def _pool(self, x: torch.Tensor, mask_BA: torch.Tensor):
        c, kind = self.values, self.values["pooling"]
        if kind == "none":
            return x, mask_BA
        if kind == "stride":
            return _stride_average(x, mask_BA, c["pool_stride"])
        if kind == "adaptive":
            pooled = _adaptive_average(x, mask_BA, c["num_tokens"])
        elif kind == "window":
            pooled = self._window_average(x, mask_BA)
        else:
            pooled = self.pool(x, mask_BA, self.queries.expand(len(x), -1, -1))
        return pooled, mask_BA.new_ones(len(x), c["num_tokens"])

    def _window_average(self, x: torch.Tensor, mask_BA: torch.Tensor) -> torch.Tensor:
        """Spans of a fixed length from the start on; a learned vector where none of a span is valid."""
        num_tokens = self.values["num_tokens"]
        spans, filled = _stride_average(x, mask_BA, self.values["pool_stride"])
        missing = max(num_tokens - spans.shape[1], 0)
        spans, filled = F.pad(spans, (0, 0, 0, missing)), F.pad(filled, (0, missing))
        spans = torch.where(filled[..., None], spans, self.empty.to(spans.dtype))
        return spans[:, :num_tokens]


def _rotate(x_BHAK: torch.Tensor) -> torch.Tensor:
    """Rotary positions over the last axis, base 10,000."""
    half = x_BHAK.shape[-1] // 2
    place = torch.arange(half, device=x_BHAK.device, dtype=torch.float32)
    rates = 10_000.0 ** (-place / half)
    angles = torch.arange(x_BHAK.shape[2], device=x_BHAK.device)[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    a, b = x_BHAK.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x_BHAK.dtype)


def _sinusoids(length: int, dim: int, device: torch.device) -> torch.Tensor:
    place = torch.arange(dim // 2, device=device, dtype=torch.float32)
    rates = torch.exp(-math.log(10_000.0) * place / max(dim // 2 - 1, 1))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def _adaptive_average(x: torch.Tensor, mask_BA: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """`F.adaptive_avg_pool1d` over each row's valid prefix, as one product with a matrix of weights."""
    n_B1 = mask_BA.sum(-1, keepdim=True).clamp(min=1)
    span = torch.arange(num_tokens, device=x.device)
    start, end = span * n_B1 // num_tokens, -(-(span + 1) * n_B1 // num_tokens)
    place = torch.arange(x.shape[1], device=x.device)
    weights = ((place >= start[..., None]) & (place < end[..., None])).to(x.dtype)
    return (weights / weights.sum(-1, keepdim=True)) @ x


def _stride_average(x: torch.Tensor, mask_BA: torch.Tensor, stride: int):
    extra = -x.shape[1] % stride
    total = F.pad(x.masked_fill(~mask_BA[..., None], 0), (0, 0, 0, extra)).unflatten(
        1, (-1, stride)
    )
    count = F.pad(mask_BA, (0, extra)).unflatten(1, (-1, stride)).sum(-1)
    return total.sum(2) / count.clamp(min=1)[..., None], count > 0


def flax_views(model: BridgeFormer) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Views of all parameters under the names and shapes of the JAX tree; a list over stacked layers."""
    views: dict[str, Any] = {"output_norm/scale": model.output_scale}
    for name in ("input_mlp", "output_mlp"):
        views |= _mlp(name, getattr(model, name))
    views |= _norm("encoder_norm", model.encoder_norm)
    if model.values["positions"] == "learned":
        views["positions"] = model.positions
    if model.values["pooling"] == "window":
        views["empty"] = model.empty
    if model.values["pooling"] == "attention":
        views |= {"pool/queries": model.queries, **_attention("pool/attention", model.pool)}
    layers = [dict(_layer(layer)) for layer in model.layers]
    return views | {f"layers/{n}": [layer[n] for layer in layers] for n in layers[0]}


def _layer(layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _norm("attention_norm", layer.attention_norm).items()
    yield from _attention("attention", layer.attention).items()
    yield from _norm("mlp_norm", layer.mlp_norm).items()
    yield from _mlp("mlp", layer.mlp).items()


def _norm(name: str, norm: nn.LayerNorm) -> dict[str, torch.Tensor]:
    return {f"{name}/scale": norm.weight, f"{name}/bias": norm.bias}


def _mlp(name: str, mlp: Any) -> dict[str, torch.Tensor]:
    views = {}
    for part in ("up", "down"):
        linear = getattr(mlp, part)
        views |= {f"{name}/{part}/kernel": linear.weight.T, f"{name}/{part}/bias": linear.bias}
    return views


def _attention(name: str, attention: Attention) -> dict[str, torch.Tensor]:
    heads = (attention.num_heads, -1)
    kernels = attention.qkv.weight.T.unflatten(1, (3, *heads)).unbind(1)
    biases = attention.qkv.bias.unflatten(0, (3, *heads)).unbind(0)
    views = {
        f"{name}/out/kernel": attention.out.weight.T.unflatten(0, heads),
        f"{name}/out/bias": attention.out.bias,
    }
    for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
        views |= {f"{name}/{part}/kernel": kernel, f"{name}/{part}/bias": bias}
    return views


def all_views(projector: BridgeFormer, objective: nn.Module) -> dict[str, Any]:
    """Views of everything that trains, under the names of `projector.safetensors`."""
    views = {f"projector/{name}": view for name, view in flax_views(projector).items()}
    return views | {f"objective/{name}": p for name, p in objective.named_parameters()}


@torch.no_grad()
def load_arrays(views: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> None:
    """Copies arrays into the views of the same names.

    Raises:
        ValueError: names or shapes that differ, all of them named.
    """
    problems = [f"{name}: only on one side" for name in sorted(views.keys() ^ arrays.keys())]
    for name in sorted(views.keys() & arrays.keys()):
        view, array = views[name], arrays[name]
        parts = view if isinstance(view, list) else [view]
        pieces = array if isinstance(view, list) else array[None]
        if len(parts) != len(pieces) or parts[0].shape != pieces.shape[1:]:
            problems.append(f"{name}: {tuple(array.shape)} does not fit")
            continue
        for part, piece in zip(parts, pieces, strict=True):
            part.copy_(piece)
    if problems:
        raise ValueError("these weights are of another projector: " + "; ".join(problems))


@torch.no_grad()
def arrays(views: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Copies of the views on the CPU, stacked layers joined."""
    joined = {n: torch.stack(v) if isinstance(v, list) else v for n, v in views.items()}
    return {n: v.detach().float().cpu().clone().contiguous() for n, v in joined.items()}


def load(path: str, projector: BridgeFormer, objective: nn.Module) -> None:
    """Reads the weights of a trained workdir; errors as `load_arrays`."""
    load_arrays(all_views(projector, objective), safetensors.torch.load_file(path))


def save(path: str, projector: BridgeFormer, objective: nn.Module) -> None:
    """Writes weights that a workdir's `projector.safetensors` may be replaced with."""
    safetensors.torch.save_file(arrays(all_views(projector, objective)), path)
