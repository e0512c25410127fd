"""The frozen LLM of `transformers`, and greedy answers to prompts given as embeddings.

Generation is the loop that a PyTorch engineer writes for speed: a static KV cache, one step that can be
compiled (CUDA graphs under 'reduce-overhead'), the arg-max inside it, and no look at the result but every
few tokens. What all prompts begin with is read once and its keys and values are shared.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

MODES = ("eager", "default", "reduce-overhead", "max-autotune")
_BUCKET = 32  # lengths of prompts are padded to its multiples, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer: ids without the stop id, and whether a stop id ended it."""

    ids: tuple[int, ...]
    stopped: bool


def load(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """The causal LLM in a canonical model folder, frozen, on `device`."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.to(device).eval().requires_grad_(False)


def compiled(function: Callable, mode: str) -> Callable:
    """`function` as it is ('eager') or compiled in a mode of `torch.compile`."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}; expected one of {', '.join(MODES)}")
    if mode == "eager":
        return function
    # Whole graphs of fixed shapes: a break or a symbolic size would cost CUDA graphs without a word.
    return torch.compile(function, mode=mode, fullgraph=True, dynamic=False)


class Generator:
    """Greedy answers, batch by batch.

    A row of the cache is `[prefix | padding | rest of the prompt | answer]`; positions count real tokens.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        prefix_ids: Sequence[int] = (),
        *,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        mode: str = "eager",
        look_every: int = 8,
    ):
        """Args: the LLM; ids that end an answer; what every prompt begins with; limits; how the step runs
        (one of MODES); tokens between two looks at whether all rows have ended."""
        self.model, self.max_new_tokens, self.batch_size = model, max_new_tokens, batch_size
        self._is_compiled = mode != "eager"
        # Kept between calls: a CUDA graph is bound to where its cache lies.
        self._caches: dict[tuple[int, int], transformers.StaticCache] = {}
        self._stops = torch.tensor(sorted(stop_ids), device=model.device)
        self._look_every = look_every
        self._prefix = self._read_prefix(list(prefix_ids))
        self._num_prefix = len(prefix_ids)
        self._step = compiled(self._step_eager, mode)

    @torch.no_grad()
    def __call__(
        self, tails: Sequence[torch.Tensor], on_batch: Callable[[int], Any] | None = None
    ) -> list[Generation]:
        """Answers to prompts, in order.

        Args:
            tails: embeddings [N_i, D] of what follows the prefix.
            on_batch: called with the number of prompts done since the last call.
        """
        answers: dict[int, Generation] = {}
        order = sorted(range(len(tails)), key=lambda i: len(tails[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = [tails[i] for i in rows]
            if self._is_compiled:  # one shape for all batches
                batch += [batch[0]] * (self.batch_size - len(batch))
            answers |= zip(rows, self._finish(self.generate_batch(batch)), strict=False)
            if on_batch:
                on_batch(len(rows))
        return [answers[i] for i in range(len(tails))]

    @torch.no_grad()
    def generate_batch(
        self, tails: Sequence[torch.Tensor], stop_early: bool = True
    ) -> torch.Tensor:
        """Ids [B, max_new_tokens] of one batch; past a row's stop id they mean nothing."""
        cache, mask_BK, position_B, ids_B = self.prefill(tails)
        ids_BM = self._stops[:1].repeat(len(tails), self.max_new_tokens)
        ids_BM[:, 0] = ids_B
        for step in range(1, self.max_new_tokens):
            if self._is_compiled:
                torch.compiler.cudagraph_mark_step_begin()
            outputs = self._step(ids_B, position_B, mask_BK, cache)
            # A CUDA graph writes its outputs to the same place at every replay.
            ids_B, position_B = (x.clone() for x in outputs)
            ids_BM[:, step] = ids_B
            if stop_early and step % self._look_every == 0:
                ended_B = torch.isin(ids_BM[:, : step + 1], self._stops).any(1)
                if bool(ended_B.all()):
                    break
        return ids_BM

    @torch.no_grad()
    def prefill(self, tails: Sequence[torch.Tensor]):
        """A cache that holds the prompts, its mask, the next position and every row's first token."""
        batch, start = len(tails), self._num_prefix
        length = -(-max(len(t) for t in tails) // _BUCKET) * _BUCKET
        cache = self._cache(batch, start + length + self.max_new_tokens)
        embeddings = tails[0].new_zeros(batch, length, tails[0].shape[1])
        size = (batch, start + length + self.max_new_tokens)
        mask_BK = torch.ones(size, dtype=torch.bool, device=self.model.device)
        for row, tail in enumerate(tails):
            embeddings[row, length - len(tail) :] = tail
            mask_BK[row, start : start + length - len(tail)] = False
        positions_BN = (mask_BK.cumsum(1) - 1)[:, start : start + length].clamp(min=0)
        logits = self.model(
            inputs_embeds=embeddings.to(self.model.dtype),
            attention_mask=mask_BK,
            position_ids=positions_BN,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        return cache, mask_BK, positions_BN[:, -1] + 1, logits.argmax(-1)

    def _cache(self, batch: int, length: int) -> transformers.StaticCache:
        """A cache that holds the prefix and nothing else."""
        key = (batch, length)
        if key in self._caches:
            self._caches[key].reset()
        else:
            config = self.model.config
            self._caches[key] = transformers.StaticCache(config=config, max_cache_len=length)
        for i, layer in enumerate(self._prefix.layers if self._prefix is not None else ()):
            shape = (batch, -1, -1, -1)
            self._caches[key].update(layer.keys.expand(shape), layer.values.expand(shape), i)
        return self._caches[key]

    def _step_eager(self, ids_B, position_B, mask_BK, cache):
        logits = self.model(
            input_ids=ids_B[:, None],
            attention_mask=mask_BK,
            position_ids=position_B[:, None],
            past_key_values=cache,
        ).logits[:, -1]
        return logits.argmax(-1), position_B + 1

    @torch.no_grad()
    def _read_prefix(self, ids: list[int]) -> Any:
        if not ids:
            return None
        cache = transformers.DynamicCache(config=self.model.config)
        inputs = torch.tensor([ids], device=self.model.device)
        self.model(input_ids=inputs, past_key_values=cache, logits_to_keep=1)
        return cache

    def _finish(self, ids_BM: torch.Tensor) -> list[Generation]:
        stops = set(self._stops.tolist())
        answers = []
        for ids in ids_BM.tolist():
            end = next((i for i, token in enumerate(ids) if token in stops), None)
            answers.append(Generation(tuple(ids[:end]), end is not None))
        return answers
