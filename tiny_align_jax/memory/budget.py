"""Bytes that a stage of work takes, and whether they fit a device's budget.

A `Stage` is a list of `Part`s: weights, states, caches, temporaries of compiled programs. Parts of the
same moment are there together; parts without a moment are there all the time; the peak is that of the
worst moment. `memory.stages` builds the stages of a config; here is the arithmetic.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from tiny_align_jax.types import BudgetError, ConfigError

PLATFORMS = ("", "cpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Config:
    """The device that a run has to fit.

    Attributes:
        name: of the preset in `configs/devices`, '' for none.
        platform: 'cpu' or 'gpu'; '' is the one that JAX runs on.
        budget_bytes: what one process may take; 0 for no limit. Of a board whose CPU and GPU share
            their memory, both together, else of the accelerator alone.
        shared: CPU and GPU share their memory.
    """

    name: str = ""
    platform: str = ""
    budget_bytes: int = 0
    shared: bool = False

    def __post_init__(self):
        problems = []
        if self.platform not in PLATFORMS:
            problems.append(f"platform={self.platform!r}; expected 'cpu', 'gpu' or ''")
        if self.budget_bytes < 0:
            problems.append(f"budget_bytes={self.budget_bytes}; expected 0 (no limit) or more")
        if problems:
            raise ConfigError("device: " + "; ".join(problems))

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes, so that there is one memory."""
        return (self.platform or jax.default_backend()) == "cpu"


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Attributes:
        name: what it is.
        device_bytes: where JAX computes: on a CPU this is host memory, too.
        host_bytes: beside it, in the process's own memory.
        moment: when it is there; '' means all the time.
        reclaimable: pages of a mapped file: counted as resident, but the system takes them back when
            memory is short, so no budget has to hold them.
    """

    name: str
    device_bytes: int = 0
    host_bytes: int = 0
    moment: str = ""
    reclaimable: bool = False


@dataclasses.dataclass(frozen=True)
class Peak:
    """Largest bytes at one moment."""

    num_bytes: int
    moment: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of work in a process of its own.

    Attributes:
        name: e.g. 'training'.
        setting: what its size depends on, in words: batch, length.
        parts: everything that takes memory.
    """

    name: str
    setting: str
    parts: tuple[Part, ...]

    @property
    def device(self) -> Peak:
        """Peak of what JAX allocates."""
        return self._peak(lambda part: part.device_bytes)

    @property
    def host(self) -> Peak:
        """Peak of the rest of the process, as its resident memory counts it."""
        return self._peak(lambda part: part.host_bytes)

    @property
    def total(self) -> Peak:
        """Peak of both together: the resident memory of a process that computes on the CPU."""
        return self._peak(_all_bytes)

    def needed(self, config: Config) -> Peak:
        """The peak that the budget of `config` has to hold."""
        if config.shared or config.on_cpu:
            return self._peak(lambda part: 0 if part.reclaimable else _all_bytes(part))
        return self.device

    def _peak(self, size: Callable[[Part], int]) -> Peak:
        always = sum(size(part) for part in self.parts if not part.moment)
        moments = {part.moment: 0 for part in self.parts}
        for part in self.parts:
            moments[part.moment] += size(part) if part.moment else 0
        moment = max(moments, key=lambda name: moments[name])
        return Peak(always + moments[moment], moment)


def _all_bytes(part: Part) -> int:
    return part.device_bytes + part.host_bytes


def require_fits(config: Config, stages: Sequence[Stage], advice: Callable[[Stage], str]) -> None:
    """Refuses stages that do not fit the budget.

    Args:
        config: the device.
        stages: what is to run.
        advice: what to change so that a stage fits; called only for one that does not.

    Raises:
        BudgetError: names every stage that is too large, with its largest parts and the advice.
    """
    if not config.budget_bytes:
        return
    problems = [
        f"{stage.name} ({stage.setting}) needs {megabytes(stage.needed(config).num_bytes)} "
        f"while it does this: {stage.needed(config).moment or 'all the time'}; largest: "
        f"{_largest_parts(stage)}. {advice(stage)}"
        for stage in stages
        if stage.needed(config).num_bytes > config.budget_bytes
    ]
    if problems:
        where = f"device {config.name!r}" if config.name else "this device"
        raise BudgetError(
            f"{where} has a budget of {megabytes(config.budget_bytes)} (device.budget_bytes):\n  "
            + "\n  ".join(problems)
        )


def table(stages: Sequence[Stage], config: Config) -> str:
    """All parts and peaks as text, in MB."""
    lines = [f"{'':<46}{'device':>10}{'host':>10}   MB"]
    for stage in stages:
        lines.append(f"{stage.name}: {stage.setting}")
        for part in stage.parts:
            when = f" ({part.moment})" if part.moment else ""
            lines.append(_row(f"  {part.name}{when}", part.device_bytes, part.host_bytes))
        lines.append(_row("  peak", stage.device.num_bytes, stage.host.num_bytes))
        lines.append("  " + _verdict(stage, config))
    return "\n".join(lines)


def _verdict(stage: Stage, config: Config) -> str:
    peak = stage.needed(config)
    what = "in all" if config.shared or config.on_cpu else "on the device"
    at = f", at: {peak.moment}" if peak.moment else ""
    text = f"{megabytes(peak.num_bytes)} {what}{at}"
    if not config.budget_bytes:
        return text
    fits = "fits" if peak.num_bytes <= config.budget_bytes else "DOES NOT FIT"
    return f"{text}; budget {megabytes(config.budget_bytes)}: {fits}"


def _row(name: str, device_bytes: int, host_bytes: int) -> str:
    return f"{name:<46}{device_bytes / 1e6:>10,.1f}{host_bytes / 1e6:>10,.1f}"


def _largest_parts(stage: Stage) -> str:
    parts = sorted(stage.parts, key=_all_bytes, reverse=True)[:3]
    return ", ".join(f"{part.name} {megabytes(_all_bytes(part))}" for part in parts)


def megabytes(num_bytes: int) -> str:
    """E.g. '1,234 MB' (10^6 bytes)."""
    return f"{num_bytes / 1e6:,.0f} MB"
