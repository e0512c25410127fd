"""Fetches pretrained models and voices, verifies them, and converts them once into a cache folder.

    python -m experiments.fetch_assets --assets=quickstart
    python -m experiments.fetch_assets --assets=whisper-base,gemma-3-270m --cache_dir=/data/models
    python -m experiments.fetch_assets --list

Besides the named assets, a hub id (`openai/whisper-small`, needs a network), a local model folder
or a .gguf file can be given; it is checked, and converted if it is not in safetensors.
"""

import os
import sys
from collections.abc import Iterable

from absl import app, flags

from tiny_align_jax.types import TinyAlignError
from tiny_align_jax.weights import assets, folder

_ASSETS = flags.DEFINE_list(
    "assets", ["quickstart"], "Comma-separated names; 'quickstart' and 'all' stand for groups."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align"),
    "Where fetched models are kept; the environment variable TINY_ALIGN_CACHE sets the default.",
)
_LIST = flags.DEFINE_bool("list", False, "List the named assets and exit.")
_VERIFY = flags.DEFINE_bool("verify", False, "Hash every file of assets that are already there.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected {' '.join(argv[1:])!r}; name assets as --assets=NAME,NAME"
        )
    if _LIST.value:
        return _print_table(
            ("name", "download", "on disk", "licence", "the same on the hub"),
            [
                (a.name, _mb(a.bundles[0].download_bytes), _mb(a.disk_bytes), a.licence, a.hub_id)
                for a in assets.ASSETS.values()
            ],
        )
    rows, failures = [], []
    for name in dict.fromkeys(n for g in _ASSETS.value for n in assets.GROUPS.get(g, (g,))):
        try:
            found = assets.resolve(name, _CACHE_DIR.value)
            if _VERIFY.value:
                folder.verify(found)
            rows.append(_row(found))
        except TinyAlignError as error:
            failures.append(f"{name}: {error}")
        except KeyboardInterrupt:
            sys.exit(f"interrupted at {name}; nothing half-written was kept, run it again")
    if rows:
        _print_table(("name", "source", "size", "fingerprint", "folder"), rows)
    if failures:
        sys.exit("\n".join(failures))


def _row(found: assets.ModelFolder) -> tuple[str, ...]:
    size = sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file())
    origin = found.origin if len(found.origin) <= 60 else found.origin[:57] + "..."
    return found.name, origin, _mb(size), found.fingerprint[:12], str(found.path)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


def _print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    app.run(main)
