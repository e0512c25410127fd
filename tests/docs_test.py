"""What the documents point to exists: links, headings, files, commands and their flags. Runs and imports nothing."""

import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "published").glob("*/*.md"),
        *(ROOT / "third_party").rglob("*.md"),
    ]
)
# Docstrings and the Makefile tell commands, too.
TELLERS = [
    *PAGES,
    ROOT / "Makefile",
    *(
        p
        for top in ("tiny_align_jax", "experiments", "configs")
        for p in (ROOT / top).rglob("*.py")
    ),
]
_DEFINED = re.compile(r'(?:DEFINE\w*|define_\w+)\(\s*(?:\w+,\s*)?"(\w+)"')
_COMMAND = re.compile(r"python3? -m experiments\.(\w+)([^\n`|]*)")
_FLAG = re.compile(r"(?<![\w-])--(?!help\b|xla_)(\w+)")


def _name(path):
    return str(path.relative_to(ROOT))


def _anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@functools.cache
def _flags(*stems):
    """Flags that experiments define, those of all of them included; a bool's --no form, too."""
    files = [ROOT / "experiments" / f"{stem}.py" for stem in (*stems, "_main", "_device")]
    found = {name for file in files for name in _DEFINED.findall(file.read_text())}
    return found | {f"no{name}" for name in found}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_and_flags_in_code_marks_exist(page):
    every = _flags(*(p.stem for p in (ROOT / "experiments").glob("*.py")))
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for path in re.findall(r"(?<![\w/.<])[\w./-]+/[\w.-]+\.(?:py|md|tsv)\b", code):
            roots = (ROOT, ROOT / "tiny_align_jax", page.parent)
            assert any((root / path).exists() for root in roots), path
        assert not set(_FLAG.findall(code)) - every, code


@pytest.mark.parametrize("top", sorted({_name(p).split("/")[0] for p in TELLERS}))
def test_commands_name_experiments_and_their_flags(top):
    for path in (p for p in TELLERS if _name(p).split("/")[0] == top):
        text = path.read_text().replace("\\\n", " ")
        for experiment, arguments in _COMMAND.findall(text):
            assert (ROOT / "experiments" / f"{experiment}.py").exists(), f"{path}: {experiment}"
            strangers = set(_FLAG.findall(arguments)) - _flags(experiment)
            assert not strangers, f"{path}: {experiment} has no {strangers}"
            for config in re.findall(r"--\w*config=([\w/]+\.py)", arguments):
                assert (ROOT / config).exists(), f"{path}: {config}"


def test_the_pages_name_every_experiment_a_user_calls():
    text = "".join(page.read_text() for page in PAGES)
    mains = {p.stem for p in (ROOT / "experiments").glob("[!_]*.py")}
    assert not {main for main in mains if not re.search(rf"\b{main}\b", text)}
