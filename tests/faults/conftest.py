"""The campaigns' tables, printed after the tests: `bash launch/test.sh --all
tests/faults`."""

from collections import defaultdict

import pytest


@pytest.fixture
def lost(record_property):
  """A function `(fault, steps)` that records how many steps a fault has cost."""
  return lambda fault, steps: record_property("lost", (fault, steps))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
  rows: dict[str, list[int]] = defaultdict(list)
  damaged: dict[str, list[int]] = defaultdict(lambda: [0, 0])
  for report in terminalreporter.getreports("passed"):
    for fault, steps in (
      value for name, value in report.user_properties if name == "lost"
    ):
      rows[fault].append(steps)
    for name, value in report.user_properties:
      if name == "damaged":
        files, n_trials, n_lines = value
        damaged[files][0] += n_trials
        damaged[files][1] += n_lines
  if rows:
    terminalreporter.section("steps lost by each fault")
  for fault, steps in rows.items():
    terminalreporter.write_line(
      f"| {fault} | {len(steps)} | {min(steps)} to {max(steps)} |"
    )
  if damaged:
    terminalreporter.section(
      "damage and swaps of files: trials, starts that ended in one line"
    )
  for files, (n_trials, n_lines) in damaged.items():
    terminalreporter.write_line(f"| {files} | {n_trials} | {n_lines} |")
