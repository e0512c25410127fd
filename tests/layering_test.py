"""The house rule of docs/architecture.md, read from the imports: they run one way, and leaves stay apart."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "tiny_align_jax"

LEAVES = {
    "data",
    "datasets",
    "encoders",
    "projectors",
    "objectives",
    "llms",
    "metrics",
    "ngram",
    "quantize",
    "weights",
    "beam",
    "attention",
    "ctc",
    "lora",
    "matching",
    "accents",
    "heap",
    "placing",
    "published",
    "synthesize",
    "testing",
}
# From the ground up; a part imports parts of lower layers. Top-level modules that stand nowhere here are
# what experiments call (reports, sweeps): they import anything, and nothing below imports them.
LAYERS = (
    {"types"},
    {"checks"},
    {"registry", "programs"},
    LEAVES,
    {"features", "decode_loop", "joined", "scoring"},
    {"decode", "decode_steered", "shrink"},
    {"responder"},
    {"aligner", "train"},
    {"language", "reading_config", "related"},
    {"candidates"},
    {"reading"},
    {"transcribe"},
    {"adapt"},
    {"memory"},
)
TOP = len(LAYERS)
GROUND = {"types", "checks"}
# What a leaf may import besides GROUND and itself, and why.
EXCEPTIONS = {
    ("objectives", "ctc"): "the arithmetic that objectives with a learned alignment share",
    ("objectives", "lora"): "what objectives through the LLM may train inside it",
    ("synthesize", "accents"): "what an accent does to phonemes, for voices that take them",
    ("projectors", "attention"): "encoders and projectors share one choice of kernel",
    ("encoders", "attention"): "the same",
    ("heap", "programs"): "programs that are held there are memory, too",
    ("datasets", "synthesize"): "the synthetic corpus is spoken by it, and by nothing else",
    ("weights", "registry"): "a folder's config.json names the family that reads it",
    ("weights", "quantize"): "matrices are quantised while they are read, so no full copy exists",
}
# Libraries that this package does without, and what each would cost.
FORBIDDEN = {
    "torch": "a test reference only: gigabytes, and a second framework in memory",
    "tensorflow": "gigabytes, and a second framework in memory",
    "pickle": "runs what it reads",
    "dill": "runs what it reads",
    "cloudpickle": "runs what it reads",
}
MAX_MAIN_LINES = 90
# Programs that are more than one call of the library, and what they do.
LONG_MAINS = {
    "quickstart": "strings all commands together as a user would type them",
    "reproduce_reading": "strings all commands of a published table together",
    "reproduce_cross": "strings the sweeps of several published tables together",
    "reproduce_so762": "strings all commands of a published table together",
    "sweep": "runs points in processes of their own, so that one may die",
}


def _files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _tree(path):
    return ast.parse(path.read_text(), str(path))


def _imports(path):
    """Dotted names that a file imports, wherever in it; `from a import b` gives both a and a.b."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(dotted):
    """'data' of 'tiny_align_jax.data.audio'; None outside the package, or for the package itself."""
    pieces = dotted.split(".")
    found = pieces[1] if pieces[0] == PACKAGE and len(pieces) > 1 else None
    return found if found and _exists(found) else None


def _exists(part):
    return (ROOT / PACKAGE / part).is_dir() or (ROOT / PACKAGE / f"{part}.py").is_file()


def _edges():
    """(part that imports, part imported, file) inside the package."""
    for path in _files(PACKAGE):
        part = path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")
        for name in _imports(path):
            if (other := _part(name)) not in (None, part):
                yield part, other, path.relative_to(ROOT)


def _layer(part):
    return next((i for i, layer in enumerate(LAYERS) if part in layer), TOP)


def test_the_table_names_parts_that_exist():
    named = set().union(*LAYERS) | {part for pair in EXCEPTIONS for part in pair}
    assert not [part for part in named if not _exists(part)]
    # Folders are parts of the library, not programs on top of it: each has its place.
    folders = {p.parent.name for p in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders <= named


def test_imports_run_one_way():
    wrong = [
        f"{path}: {part} imports {other}, which is not below it"
        for part, other, path in _edges()
        if part not in LEAVES and _layer(part) < TOP and _layer(other) >= _layer(part)
    ]
    assert not wrong, "\n".join(wrong)


def test_leaves_import_the_ground_only():
    wrong = [
        f"{path}: {part} imports {other}; leaves import types and checks only, never each other"
        for part, other, path in _edges()
        if part in LEAVES and other not in GROUND and (part, other) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_needed():
    edges = {(part, other) for part, other, _ in _edges()}
    assert set(EXCEPTIONS) <= edges


def test_no_import_goes_round_in_a_circle():
    below = {}
    for part, other, _ in _edges():
        below.setdefault(part, set()).add(other)

    def visit(part, above):
        assert part not in above, f"{' -> '.join([*above, part])}"
        for other in sorted(below.get(part, ())):
            visit(other, [*above, part])

    for part in sorted(below):
        visit(part, [])


def test_the_library_knows_no_experiments_configs_or_tests():
    for path in _files(PACKAGE):
        assert not {n.split(".")[0] for n in _imports(path)} & {"experiments", "configs", "tests"}
    for path in _files("experiments", "configs"):
        assert "tests" not in {n.split(".")[0] for n in _imports(path)}, path


@pytest.mark.parametrize("library", sorted(FORBIDDEN))
def test_libraries_that_we_do_without(library):
    users = [
        str(path.relative_to(ROOT))
        for path in _files(PACKAGE, "experiments", "configs")
        if library in {name.split(".")[0] for name in _imports(path)}
    ]
    assert not users, f"{library}: {FORBIDDEN[library]}"


def _reads_environment(node):
    names = ("environ", "environb", "getenv", "putenv")
    return (isinstance(node, ast.Attribute) and node.attr in names) or (
        isinstance(node, ast.alias) and node.name in names
    )


def _reads_flags(node):
    return (isinstance(node, ast.ImportFrom) and node.module == "absl") and any(
        alias.name in ("flags", "app") for alias in node.names
    )


def _reads_argv(node):
    return isinstance(node, ast.Attribute) and node.attr == "argv"


def _prints(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("print", "input")


@pytest.mark.parametrize("does", [_reads_environment, _reads_flags, _reads_argv, _prints])
def test_the_library_reads_no_flags_or_environment_and_prints_nothing(does):
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"
        for path in _files(PACKAGE)
        for node in ast.walk(_tree(path))
        if does(node)
    ]
    assert not found


def test_nothing_trusts_remote_code_or_unpickles():
    for path in _files(PACKAGE, "experiments", "configs"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                assert getattr(node.value, "value", None) is False, f"{path}:{node.value.lineno}"


def test_experiments_are_short_and_guarded():
    mains = [p for p in _files("experiments") if not p.name.startswith("_")]
    long = {p.stem for p in mains if len(p.read_text().splitlines()) > MAX_MAIN_LINES}
    assert long <= set(LONG_MAINS), "move what they do into the library"
    for path in mains:
        assert 'if __name__ == "__main__":' in path.read_text(), path
        assert ast.get_docstring(_tree(path)), f"{path}: the docstring says how to call it"


def test_no_file_is_called_utils():
    assert not [p for p in _files(PACKAGE, "experiments", "configs") if "util" in p.stem]
