"""The three objectives in PyTorch. A module each, with the frozen table as a buffer.

`compute` is the part that `torch.compile` gets; `finish` makes the loss of what it returns. They differ for CTC
only: `F.ctc_loss` looks at lengths on the host, which no CUDA graph allows.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from third_party.torch_baseline.bridgeformer import BridgeFormer


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch on the device; the `host` lengths are the same numbers on the CPU, for `F.ctc_loss`."""

    features_BTE: torch.Tensor
    num_frames_B: torch.Tensor
    targets_BL: torch.Tensor
    num_targets_B: torch.Tensor
    weight_B: torch.Tensor
    host_num_frames_B: torch.Tensor
    host_num_targets_B: torch.Tensor


def weighted_mean(loss_B: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """Mean over real rows."""
    return (loss_B * weight_B).sum() / weight_B.sum().clamp(min=1)


class EmbedLink(nn.Module):
    """Squared error and cosine against the transcript's rows, cast to the number of audio tokens."""

    table: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, values: Mapping[str, Any], table_VD: torch.Tensor):
        super().__init__()
        self.values = dict(values)
        self.register_buffer("table", table_VD, persistent=False)
        self.register_buffer("variance", table_VD.float().var(correction=0), persistent=False)
        mean_D = table_VD.float().mean(0) * self.values["centre"]
        self.register_buffer("mean", mean_D, persistent=False)

    def compute(self, audio_BAD, mask_BA, targets_BL, num_targets_B, weight_B):
        """The mean loss."""
        v = self.values
        rows_BA, is_text_BA = self._cast(targets_BL, num_targets_B, audio_BAD.shape[1])
        target_BAD = F.embedding(rows_BA, self.table).float()
        mse_BA = (audio_BAD - target_BAD).square().mean(-1) / self.variance
        cosine_BA = (_unit(audio_BAD - self.mean) * _unit(target_BAD - self.mean)).sum(-1)
        share_BA = torch.where(is_text_BA, 1.0, v["pad_weight"]) * mask_BA
        loss_BA = v["mse_weight"] * mse_BA + v["cosine_weight"] * (1 - cosine_BA)
        loss_B = (loss_BA * share_BA).sum(-1) / share_BA.sum(-1).clamp(min=1e-6)
        return weighted_mean(loss_B, weight_B)

    def finish(self, computed: torch.Tensor, batch: Batch, projector: BridgeFormer):
        """`compute` has done it all."""
        return computed

    def _cast(self, targets_BL: torch.Tensor, num_targets_B: torch.Tensor, num_tokens: int):
        place = torch.arange(num_tokens, device=targets_BL.device)
        count_B1 = num_targets_B[:, None]
        if self.values["cast"] == "stretch":
            index, is_text = (
                place * count_B1.clamp(min=1) // num_tokens,
                (count_B1 > 0) | (place < 0),
            )
        else:
            index, is_text = place.expand(len(targets_BL), -1), place < count_B1
        rows = targets_BL.gather(1, index.clamp(max=targets_BL.shape[1] - 1))
        return torch.where(is_text, rows, 0), is_text

    def read(self, audio_BAD: torch.Tensor, mask_BA: torch.Tensor):
        """Nearest row at each audio token, and which of them carry text."""
        unit_table = _unit(self.table.float() - self.mean)
        best_BA = (_unit(audio_BAD - self.mean) @ unit_table.T).argmax(-1)
        if self.values["cast"] == "pad":
            is_text = best_BA != 0
            if self.values["at_end"] == "stop":
                is_text = (~is_text).cumsum(1) == 0
            return best_BA, is_text & mask_BA
        previous = F.pad(best_BA[:, :-1], (1, 0))
        return best_BA, (best_BA != previous) & (best_BA != 0) & mask_BA


class EmbedLinkCTC(nn.Module):
    """`F.ctc_loss` over cosine logits against the table's rows and, last, a learned blank."""

    unit_table: torch.Tensor
    mean: torch.Tensor

    def __init__(self, values: Mapping[str, Any], table_VD: torch.Tensor):
        super().__init__()
        self.values = dict(values)
        dim = table_VD.shape[1]
        self.blank = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.blank_bias = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.values["initial_scale"])))
        mean_D = table_VD.float().mean(0) * self.values["centre"]
        self.register_buffer("mean", mean_D, persistent=False)
        dtype = getattr(torch, self.values["logits_dtype"])
        unit_table = _unit(table_VD.float() - mean_D).to(dtype)
        self.register_buffer("unit_table", unit_table, persistent=False)

    def compute(self, audio_BAD, mask_BA, targets_BL, num_targets_B, weight_B):
        """Log-probabilities [A, B, V + 1], float32: the layout that the loss reads."""
        return self.log_probs(audio_BAD.transpose(0, 1))

    def log_probs(self, audio: torch.Tensor) -> torch.Tensor:
        """Over the table's rows and, last, the blank."""
        audio = _unit(audio - self.mean)
        scale = self.log_scale.exp()
        with torch.autocast(audio.device.type, enabled=False):
            rows = audio.to(self.unit_table.dtype) @ self.unit_table.T
            blank = scale * (audio @ _unit(self.blank)) + self.blank_bias
        return torch.cat([scale * rows.float(), blank[..., None]], -1).log_softmax(-1)

    def finish(self, computed: torch.Tensor, batch: Batch, projector: BridgeFormer):
        """Mean over real rows of the negative log-likelihood a target; 0 where nothing can emit them."""
        loss_B = F.ctc_loss(
            computed,
            batch.targets_BL,
            projector.num_audio_tokens(batch.host_num_frames_B),
            batch.host_num_targets_B,
            blank=computed.shape[-1] - 1,
            reduction="none",
            zero_infinity=True,
        )
        return weighted_mean(loss_B / batch.num_targets_B.clamp(min=1), batch.weight_B)

    def read(self, audio_BAD: torch.Tensor, mask_BA: torch.Tensor):
        """Greedy path: blanks and repeats dropped."""
        logits = self.log_probs(audio_BAD)
        blank = logits.shape[-1] - 1
        best_BA = logits.argmax(-1)
        previous = F.pad(best_BA[:, :-1], (1, 0), value=blank)
        return best_BA, (best_BA != blank) & (best_BA != previous) & mask_BA


class NextToken(nn.Module):
    """Cross-entropy of the transcript through the frozen LLM, which reads the audio in its prompt."""

    row_ids: torch.Tensor
    prefix: torch.Tensor
    suffix: torch.Tensor

    def __init__(self, llm: Any, row_ids_V, prefix_ids, suffix_ids, remat: bool = False):
        """Args: frozen causal LLM; LLM id of each table row, row 0 ends the answer; prompt around the
        audio; recompute activations in the backward pass."""
        super().__init__()
        # Out of the module's own parameters: nothing of the LLM trains or is exported.
        self._llm = [llm]
        device = llm.device
        for name, ids in (("row_ids", row_ids_V), ("prefix", prefix_ids), ("suffix", suffix_ids)):
            tensor = torch.as_tensor(ids, dtype=torch.long, device=device)
            self.register_buffer(name, tensor, persistent=False)
        self._remat = remat
        if remat:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.train()

    def train(self, mode: bool = True) -> "NextToken":
        """Also switches the LLM, which recomputes in train mode only and then keeps no cache; these LLMs
        have no dropout."""
        self.llm.train(mode and self._remat)
        return super().train(mode)

    @property
    def llm(self) -> Any:
        """The frozen LLM."""
        return self._llm[0]

    def embedded_suffix(self) -> torch.Tensor:
        """Embeddings of what follows the audio in the prompt."""
        return self.llm.get_input_embeddings()(self.suffix)

    def compute(self, audio_BAD, mask_BA, targets_BL, num_targets_B, weight_B):
        """The mean loss."""
        llm, (batch, length) = self.llm, targets_BL.shape
        embed = llm.get_input_embeddings()
        prefix, suffix = (embed(ids).expand(batch, -1, -1) for ids in (self.prefix, self.suffix))
        answer = embed(self.row_ids[targets_BL])
        place = torch.arange(length + 1, device=targets_BL.device)
        given_BL = place[:-1] < num_targets_B[:, None]
        true = mask_BA.new_ones
        mask_BN = torch.cat(
            [true(prefix.shape[:2]), mask_BA, true(suffix.shape[:2]), given_BL], dim=1
        )
        inputs = torch.cat([prefix, audio_BAD.to(prefix.dtype), suffix, answer], dim=1)
        with torch.autocast(inputs.device.type, enabled=False):
            logits = llm(
                inputs_embeds=inputs,
                attention_mask=mask_BN,
                position_ids=(mask_BN.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=length + 1,
            ).logits
        rows = torch.where(place < num_targets_B[:, None], F.pad(targets_BL, (0, 1)), 0)
        labels = self.row_ids[rows].masked_fill(place > num_targets_B[:, None], -100)
        loss_BL = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        return weighted_mean(loss_BL.sum(-1) / (num_targets_B + 1), weight_B)

    def finish(self, computed: torch.Tensor, batch: Batch, projector: BridgeFormer):
        """`compute` has done it all."""
        return computed


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)
