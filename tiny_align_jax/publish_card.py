"""The model card of a published projector: every number from the files beside it, the rest from its author."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_align_jax import evaluation_report, publish
from tiny_align_jax.aligner import read_workdir
from tiny_align_jax.types import ConfigError

FILE = "README.md"
AUTHORS_HEADINGS = ("Training data", "Licences", "Intended use", "Limits")
HEADINGS = ("Use", "Scores", *AUTHORS_HEADINGS, "Frozen parts", "Reproduce")


def write(folder: str | os.PathLike, about: str | os.PathLike) -> Path:
    """Writes README.md from what lies beside it.

    Args:
        folder: that `publish.publish` filled and `experiments.evaluate` scored.
        about: Markdown file with the author's sections, `## Training data` and so on.

    Raises:
        ConfigError: no scores yet, or sections that are missing.
    """
    path = Path(folder) / FILE
    publish.clean_metrics(path.parent)
    path.write_text(text(Path(folder), Path(about).read_text(encoding="utf-8")), encoding="utf-8")
    return path


def text(folder: Path, authors: str) -> str:
    """Contents of README.md; see `write`."""
    missing = [h for h in AUTHORS_HEADINGS if f"\n## {h}\n" not in f"\n{authors}"]
    if missing:
        raise ConfigError(f"the author's part of a card lacks the section(s) {', '.join(missing)}")
    _, card = read_workdir(folder)
    about = json.loads((folder / publish.ABOUT_FILE).read_text(encoding="utf-8"))
    encoder, llm = card["encoder"], card["llm"]
    sections = [
        f"# {encoder['name']} + {llm['name']}",
        f"Base projector of tiny-align-jax, {card['projector']['name']} under {card['objective']['name']}: "
        f"it makes audio tokens for {llm['name']} of what {encoder['name']} hears. {about['num_parameters']:,} "
        f"parameters in float16, {about['num_bytes'] / 1e6:.1f} MB, step {card['step']}.",
        f"## Use\n```bash\n{_use(folder.name)}\n```",
        f"## Scores\n{_scores(folder)}\n\n{_conversion(about['conversion'])}",
        authors.strip(),
        f"## Frozen parts\n{_frozen(card)}\n\nWith other weights the projector is refused. SHA-256 of "
        f"`projector.safetensors`: `{about['sha256']}`.",
        f"## Reproduce\n{_reproduce(about)}",
    ]
    return "\n\n".join(sections) + "\n"


def _use(name: str) -> str:
    return "\n".join(
        f"python -m experiments.{line}"
        for line in (
            f"transcribe  --workdir={name} --audio=question.wav",
            f"personalize --base={name} --user=anna --manifest=anna.jsonl",
            f"evaluate    --workdir={name}",
        )
    )


def _scores(folder: Path) -> str:
    files = sorted(folder.glob(publish.METRICS))
    if not files:
        raise ConfigError(
            f"{folder} has no {publish.METRICS}; run `python -m experiments.evaluate --workdir={folder} "
            f"--out={folder}` first"
        )
    parts = []
    for path in files:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        parts.append(
            f"{evaluation_report.headline(metrics)}; normaliser `{publish.NORMALIZER}`, "
            f"{evaluation_report.interval_note(metrics)} (`{path.name}`, {_machine(metrics['versions'])}):\n\n"
            + evaluation_report.table(metrics, publish.NORMALIZER)
        )
    return "\n\n".join(parts)


def _conversion(found: Mapping[str, Any]) -> str:
    if not found["weights_changed"]:
        return "The scored weights are those of this file, digit for digit."
    return (
        f"By the conversion to float16 {found['num_changed']} of {found['num_utterances']} validation readings "
        f"changed; WER {found['wer_original']:.4f} before, {found['wer_published']:.4f} after. The scores above "
        "are those of the published file."
    )


def _frozen(card: Mapping[str, Any]) -> str:
    rows = [
        [part, card[part]["name"], f"`{card[part]['fingerprint']}`"] for part in ("encoder", "llm")
    ]
    return _table(["part", "asset", "SHA-256 of the weights"], rows)


def _reproduce(about: Mapping[str, Any]) -> str:
    lines = [f"```bash\n{about['command']}\n```"]
    if found := about["training"]:
        lines.append(
            f"Trained on {found['num_utterances']:,} utterances in {found['train_s']:,.0f} s of steps and "
            f"{found['compile_s']:.0f} s of compilation; {_machine(found['versions'])}."
        )
    return "\n\n".join(lines)


def _machine(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
