"""Turns skips into failures: `pytest -p tests.strict_plugin --forbid-skips=parity,weights`.

A skipped test proves nothing. CI installs torch and fetches the weights, so there a skip of a test that
needs them means that something is broken; a skip of a data test is allowed only without the corpus.
"""

import os

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--forbid-skips",
        default="",
        help="Markers whose tests must not skip, e.g. 'parity,weights'; others may.",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    forbidden = set(item.config.getoption("--forbid-skips").split(",")) - {""}
    if os.environ.get("TINY_ALIGN_DATA") and forbidden:
        forbidden.add("data")
    if report.skipped and not hasattr(report, "wasxfail"):
        marked = forbidden & {mark.name for mark in item.iter_markers()}
        if marked:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"skipped, but {', '.join(sorted(marked))} tests must run: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and collector.config.getoption("--forbid-skips"):
        report.outcome = "failed"
        report.longrepr = f"a whole module was skipped at import: {report.longrepr}"
