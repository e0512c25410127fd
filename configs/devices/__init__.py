"""Device presets: `--device=NAME` of any experiment applies `configs/devices/NAME.py`.

No preset imports JAX: what JAX reads of the environment has to be set before.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a device can take, and how to run there.

    Attributes:
        platform: 'cpu' or 'gpu'.
        budget_bytes: what one process may take of a headless system; of a board whose CPU and GPU share
            their memory, both together.
        shared: CPU and GPU share their memory.
        environment: variables set before JAX is imported, unless the user set them.
        limits: config keys and the largest value that makes sense there.
        values: config keys that are set. Command-line flags (--config.key=...) win over both.
    """

    platform: str
    budget_bytes: int
    shared: bool
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
