"""Fetches pretrained models and voices, verifies them, and converts them once into a cache folder.

    python -m experiments.fetch_assets --assets=quickstart
    python -m experiments.fetch_assets --assets=whisper-base,gemma-3-270m --cache_dir=/data/models
    python -m experiments.fetch_assets --list

Besides the named assets, a hub id (`openai/whisper-small`, needs a network) or a local folder or
.gguf file can be given; it is checked, and converted if it is not in safetensors.
"""

import os
import sys

from absl import app, flags

from tiny_align_jax.types import TinyAlignError
from tiny_align_jax.weights import assets
from tiny_align_jax.weights.folder import verify

_QUICKSTART = ("whisper-tiny.en", "smollm2-135m-instruct", "piper-en-us-joe-medium")
_DEFAULT_CACHE = os.environ.get("TINY_ALIGN_CACHE", "~/.cache/tiny_align")

_ASSETS = flags.DEFINE_list(
    "assets", ["quickstart"], "Comma-separated names; 'quickstart' and 'all' stand for groups."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    _DEFAULT_CACHE,
    "Where fetched models are kept; the environment variable TINY_ALIGN_CACHE sets the default.",
)
_LIST = flags.DEFINE_bool("list", False, "List the named assets and exit.")
_VERIFY = flags.DEFINE_bool("verify", False, "Hash every file of assets that are already there.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected argument(s): {' '.join(argv[1:])}; use --assets=NAME,NAME"
        )
    if _LIST.value:
        rows = [
            (a.name, _mb(a.bundles[0].download_bytes), _mb(a.disk_bytes), a.licence, a.hub_id)
            for a in assets.ASSETS.values()
        ]
        return _print_table(("name", "download", "on disk", "licence", "the same on the hub"), rows)
    rows, failures = [], []
    for name in _expand(_ASSETS.value):
        try:
            folder = assets.resolve(name, _CACHE_DIR.value)
            if _VERIFY.value:
                verify(folder)
            size = sum(f.stat().st_size for f in folder.path.rglob("*") if f.is_file())
            rows.append(
                (
                    folder.name,
                    _short(folder.origin),
                    _mb(size),
                    folder.fingerprint[:12],
                    str(folder.path),
                )
            )
        except TinyAlignError as error:
            failures.append(f"{name}: {error}")
    _print_table(("name", "source", "size", "fingerprint", "folder"), rows)
    if failures:
        sys.exit("\n".join(failures))


def _expand(names: list[str]) -> list[str]:
    groups = {"quickstart": _QUICKSTART, "all": tuple(assets.ASSETS)}
    return list(dict.fromkeys(n for name in names for n in groups.get(name, (name,))))


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    app.run(main)
