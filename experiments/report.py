"""One table, its pictures and one page from a sweep's folder.

    python -m experiments.report --workdir=workdirs/objective
    python -m experiments.report --workdir=workdirs/objective --scoring=test/answer --compare="embedlink_ctc:embedlink"

Writes report.md, report.csv, report.tex, report.html (one file, pictures inside) and PNGs to
WORKDIR/report. --compare takes pairs of rows `a:b` (any part of a row's name that is found once) and tests
the difference on the same resampled speakers.
"""

from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a sweep.", required=True)
_SCORING = flags.DEFINE_string(
    "scoring", "", "Which scores, e.g. test/answer; default: most points'."
)
_SYSTEMS = flags.DEFINE_list(
    "system", [""], "Rows for each of heard, answer, oracle; default: the one that counts."
)
_METRIC = flags.DEFINE_enum(
    "metric", "wer", ["wer", "cer", "rouge1", "rougeL"], "For the pictures."
)
_COMPARE = flags.DEFINE_multi_string("compare", [], "Two rows, a:b; may be repeated.")
_BEST_OF = flags.DEFINE_list(
    "best_of", [], "Axes that were searched: show the best row of each group by --metric."
)
_RACE = flags.DEFINE_multi_string(
    "race", [], "ours:other:paper, rows validated on their way: time to equal score."
)
_TITLE = flags.DEFINE_string("title", None, "Heading; default: the folder's name.")
_OUT = flags.DEFINE_string("out", None, "Where to write; default: WORKDIR/report.")


def main(argv):
    del argv
    from tiny_align_jax import report, report_page, report_race, report_tables
    from tiny_align_jax.types import ConfigError

    workdir = Path(str(_WORKDIR.value))
    rows, scoring = report.load(workdir, _SCORING.value, _SYSTEMS.value or [""])
    for axis in _BEST_OF.value:
        rows = report.best_of(rows, axis, _METRIC.value)
    pairs = []
    for pair in _COMPARE.value:
        names = pair.split(":")
        if len(names) != 2:
            raise ConfigError(f"--compare={pair!r}; expected two rows, a:b")
        pairs.append((report.find_row(rows, names[0]), report.find_row(rows, names[1])))
    races = []
    for race in _RACE.value:
        names = race.split(":")
        if len(names) != 3:
            raise ConfigError(f"--race={race!r}; expected three rows, ours:other:paper")
        ours, other, paper = (report.find_row(rows, name) for name in names)
        races.append(report_race.tell(ours, other, paper))
    title = _TITLE.value or f"Sweep {workdir.name}"
    out = Path(_OUT.value) if _OUT.value else workdir / "report"
    paths = report_page.write(rows, scoring, title, out, _METRIC.value, pairs, races)
    print(report_tables.markdown(rows))
    for a, b in pairs:
        print(report_tables.comparison(a, b))
    print("\n".join(races))
    print("wrote " + ", ".join(str(path) for path in paths.values()))


if __name__ == "__main__":
    _main.run(main)
