from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many inputs were read, and what they were drawn with."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    noted = [value for report in reports for name, value in report.user_properties if name == "fuzzed"]
    if noted:
        drawn = {seed for _, seed in noted}
        terminalreporter.write_line(
            f"fuzzed {sum(count for count, _ in noted)} inputs of {len(noted)} readers, {', '.join(sorted(drawn))}"
        )
