"""pytest --carve-report FILE.html: every verdict of a run on one page."""

from __future__ import annotations

import html

import pytest

_runs = pytest.StashKey[list]()
_current = ""


def pytest_addoption(parser):
    parser.getgroup("carve").addoption(
        "--carve-report",
        metavar="FILE",
        help="write the verdicts of all tests to an HTML page",
    )


def pytest_configure(config):
    if not config.getoption("--carve-report"):
        return
    from ._report import listeners

    config.stash[_runs] = runs = []
    listeners.append(lambda report: runs.append((_current, report)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    global _current
    _current = item.nodeid


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--carve-report")
    if not path:
        return
    runs = config.stash[_runs]
    page = ["<!doctype html><meta charset=utf-8><title>carve</title>"]
    for test, report in runs:
        page.append(f"<h2>{html.escape(test)}</h2>{report._repr_html_()}")
        page.append(f"<pre>{html.escape(str(report))}</pre>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(page) + "\n")
    terminalreporter.write_line(f"carve: {len(runs)} verdicts in {path}")
