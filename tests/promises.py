"""The promises of SECURITY.md: a test that holds one is marked with its sentence; `make test-faults` counts its cases.

`make test` tries a few cases of each; with `--every-case` all are tried, and the run ends with a table.
"""

from collections import defaultdict

import pytest


class Cases:
    """How many cases a test tries: `cases(short, full)` where it draws them, `cases.tried += n` where it lists them."""

    def __init__(self, every: bool):
        self.every, self.tried = every, 0

    def __call__(self, short: int, full: int) -> int:
        count = full if self.every else short
        self.tried += count
        return count


def pytest_addoption(parser):
    parser.addoption("--every-case", action="store_true", help="every case of the promises in SECURITY.md, and a table")


@pytest.fixture
def cases(request) -> Cases:
    return Cases(request.config.getoption("--every-case"))


def pytest_collection_modifyitems(items, config):
    """With every case, what every verb leaves takes ten minutes to make: first, so that one process has all its tests.

    A run's workers begin with many tests in a row each, and end with a few.
    """
    if config.getoption("--every-case"):
        items.sort(key=lambda item: "test_privacy" not in item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("promise")
    if mark and (report.when == "call" or report.failed):
        counted = item.funcargs.get("cases")  # one case where a test doesn't count
        report.user_properties.append(("promise", [mark.args[0], (counted and counted.tried) or 1]))
    return report


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--every-case"):
        return
    tried, failures = defaultdict(int), defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "promise":
                    tried[value[0]] += value[1] if report.when == "call" and not report.skipped else 0
                    failures[value[0]] += report.failed
    terminalreporter.section("promises")
    for promise in sorted(tried):
        terminalreporter.write_line(f"{tried[promise]:7,} cases  {failures[promise]:3} failures  {promise}")
    terminalreporter.write_line(f"{sum(tried.values()):7,} cases  {sum(failures.values()):3} failures  in all")
