"""A skipped test fails the run under CI unless `tests/ALLOWED_SKIPS.md` lists it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ALLOWED = Path(__file__).parent / "tests" / "ALLOWED_SKIPS.md"


def is_allowed(test: str, page: str) -> bool:
    """Say whether the page lists a test: by its id, its file or a folder, in backquotes."""
    listed = (line.split("`")[1] for line in page.splitlines() if line.startswith("- `"))
    return any(test == entry or test.startswith((f"{entry}::", f"{entry}[", f"{entry}/")) for entry in listed)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    if unlisted := unlisted_skips(terminalreporter):
        terminalreporter.write_line(
            f"Skipped without leave of {ALLOWED.name}: {', '.join(unlisted)}", red=True
        )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and os.environ.get("CI") and unlisted_skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def unlisted_skips(reporter: pytest.TerminalReporter) -> list[str]:
    page = ALLOWED.read_text(encoding="utf-8")
    skipped = [report.nodeid for report in reporter.stats.get("skipped", [])]
    return sorted({test for test in skipped if not is_allowed(test, page)})
