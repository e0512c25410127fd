"""One training step, as fast as the framework's public switches make it.

Fused AdamW, one clip over all gradients, bfloat16 autocast, nothing that waits for the device. Modes: eager; those
of `torch.compile`; and 'cuda-graph', which captures forward, backward, clip and optimizer as one graph.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from third_party.torch_baseline import llm as llm_lib
from third_party.torch_baseline.bridgeformer import BridgeFormer
from third_party.torch_baseline.objectives import Batch, EmbedLinkCTC

MODES = (*llm_lib.MODES, "cuda-graph")


class Model(nn.Module):
    """Augmentation, projector and objective."""

    def __init__(
        self,
        projector: BridgeFormer,
        objective: Any,
        augment: Mapping[str, Any],
        dtype: torch.dtype,
    ):
        """Args: what trains; keys of the JAX package's augmentation; compute dtype."""
        super().__init__()
        self.projector, self.objective = projector, objective
        self.augment, self.dtype = dict(augment), dtype

    def compute(self, features_BTE, num_frames_B, targets_BL, num_targets_B, weight_B):
        """What is compiled: everything up to the objective's `finish`."""
        if self.training:
            features_BTE = augmented(self.augment, features_BTE, num_frames_B)
        autocast = torch.autocast(features_BTE.device.type, self.dtype, self.dtype != torch.float32)
        with autocast:
            audio_BAD, mask_BA = self.projector(features_BTE, num_frames_B)
            return self.objective.compute(audio_BAD, mask_BA, targets_BL, num_targets_B, weight_B)

    @torch.no_grad()
    def read(self, features_BTE: torch.Tensor, num_frames_B: torch.Tensor):
        """The objective's reading without its targets, in float32."""
        return self.objective.read(*self.projector(features_BTE, num_frames_B))


def augmented(
    values: Mapping[str, Any], features_BTE: torch.Tensor, num_frames_B: torch.Tensor
) -> torch.Tensor:
    """Frames with spans of time and single channels set to zero and noise added; as in the JAX package."""
    batch, frames, width = features_BTE.shape
    device = features_BTE.device
    total = num_frames_B[:, None, None].float()
    if values["noise"]:
        valid = (torch.arange(frames, device=device) < num_frames_B[:, None])[..., None]
        count = total * width
        mean = (features_BTE * valid).sum((1, 2), keepdim=True, dtype=torch.float32) / count
        square = ((features_BTE - mean) * valid).square().sum((1, 2), keepdim=True) / count
        noise = torch.randn(features_BTE.shape, device=device)
        features_BTE = features_BTE + values["noise"] * square.sqrt() * noise
    shape = (batch, values["time_masks"], 1)
    length = torch.rand(shape, device=device) * values["time_mask_fraction"] * total
    start = torch.rand(shape, device=device) * (total - length)
    place = torch.arange(frames, device=device)
    hidden_BT = ((place >= start) & (place < start + length)).any(1)
    hidden_BE = torch.rand(batch, width, device=device) < values["channel_mask_fraction"]
    return features_BTE.masked_fill(hidden_BT[..., None] | hidden_BE[:, None], 0)


def warped(
    values: Mapping[str, Any], batch: Batch, generator: torch.Generator | None = None
) -> Batch:
    """The batch at changed speeds, which are drawn on the host: `F.ctc_loss` needs the lengths there."""
    if not values["warp"]:
        return batch
    frames, old = batch.features_BTE.shape[1], batch.host_num_frames_B
    rate = 1 + values["warp"] * (2 * torch.rand(len(old), generator=generator) - 1)
    new = (old * rate).round().clamp(1, frames).long()
    step = (old - 1) / (new - 1).clamp(min=1)
    source = torch.arange(frames) * step[:, None]
    last = (old - 1).clamp(min=0)[:, None]
    low = source.floor().long().minimum(last)
    high = (low + 1).minimum(last)
    device, features = batch.features_BTE.device, batch.features_BTE
    mix = (source - low)[..., None].to(device, features.dtype)

    def take(index: torch.Tensor) -> torch.Tensor:
        return features.gather(1, index.to(device)[..., None].expand(-1, -1, features.shape[2]))

    return dataclasses.replace(
        batch,
        features_BTE=take(low) * (1 - mix) + take(high) * mix,
        num_frames_B=new.to(device),
        host_num_frames_B=new,
    )


def learning_rate(values: Mapping[str, Any], num_steps: int, step: int) -> float:
    """Linear warm-up, then half a cosine, as `optax.warmup_cosine_decay_schedule`."""
    peak = values["learning_rate"]
    warmup = max(1, int(values["warmup_fraction"] * num_steps))
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(max(2, num_steps) - warmup, 1), 1.0)
    share = values["final_fraction"]
    return peak * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Steps of a model; call it with batches of few shapes."""

    def __init__(
        self, model: Model, optimizer: Mapping[str, Any], num_steps: int, mode: str = "eager"
    ):
        """Args: what trains; keys of the JAX package's optimizer; steps in all; one of MODES.

        Raises:
            ValueError: a mode that this objective or device cannot run.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; expected one of {', '.join(MODES)}")
        self.model, self.values, self.num_steps, self.mode = model, dict(optimizer), num_steps, mode
        self.step_number = 0
        parameters = list(model.parameters())
        self._device = parameters[0].device
        if mode == "cuda-graph" and self._device.type != "cuda":
            raise ValueError("mode 'cuda-graph' needs a CUDA device")
        if mode == "cuda-graph" and isinstance(model.objective, EmbedLinkCTC):
            raise ValueError(
                "mode 'cuda-graph': F.ctc_loss reads lengths on the host; take another mode"
            )
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        on_gpu = self._device.type == "cuda"
        self._lr = torch.zeros((), device=self._device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.values["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self._lr,
            betas=(self.values["b1"], self.values["b2"]),
            fused=True,
            capturable=on_gpu,
        )
        self._compute = llm_lib.compiled(model.compute, "default" if mode == "cuda-graph" else mode)
        self._graphs: dict[tuple[int, ...], Any] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        """One update; the loss stays on the device ('cuda-graph' overwrites it in the next call)."""
        batch = warped(self.model.augment, batch)
        self._lr.fill_(learning_rate(self.values, self.num_steps, self.step_number))
        self.step_number += 1
        if self.mode == "cuda-graph":
            return self._replay(batch)
        if self.mode != "eager":
            torch.compiler.cudagraph_mark_step_begin()
        return self._update(batch)

    def _update(self, batch: Batch) -> torch.Tensor:
        model = self.model
        self.optimizer.zero_grad(
            set_to_none=True
        )  # first: gradients lie in the last step's CUDA graph
        computed = self._compute(
            batch.features_BTE,
            batch.num_frames_B,
            batch.targets_BL,
            batch.num_targets_B,
            batch.weight_B,
        )
        loss = model.objective.finish(computed, batch, model.projector)
        loss.backward()
        if self.values["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.values["clip_norm"])
        self.optimizer.step()
        return loss.detach().clone()

    def _replay(self, batch: Batch) -> torch.Tensor:
        """Copies the batch to where its shape's graph reads, and runs the graph."""
        key = tuple(batch.features_BTE.shape)
        fields = [f.name for f in dataclasses.fields(Batch) if not f.name.startswith("host")]
        if key not in self._graphs:
            self._graphs[key] = self._capture(
                dataclasses.replace(batch, **{n: getattr(batch, n).clone() for n in fields})
            )
        graph, static, loss = self._graphs[key]
        for name in fields:
            getattr(static, name).copy_(getattr(batch, name))
        graph.replay()
        return loss

    def _capture(self, static: Batch):
        """A graph of one update; the warm-up updates that capturing needs are undone."""
        self._make_optimizer_state()
        held = [*self.model.parameters()]
        held += [x for state in self.optimizer.state.values() for x in state.values()]
        saved = [x.detach().clone() for x in held]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._update(static)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for x, value in zip(held, saved, strict=True):
                x.copy_(value)
        self.optimizer.zero_grad(set_to_none=True)  # gradients must come from the graph's own pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._update(static)
        return graph, static, loss

    def _make_optimizer_state(self) -> None:
        """Moments of zero at step 0: one step of zero gradients at rate 0, whose count is taken back."""
        if self.optimizer.state:
            return
        rate = self._lr.clone()
        self._lr.zero_()
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        for state in self.optimizer.state.values():
            state["step"].zero_()
        self._lr.copy_(rate)
