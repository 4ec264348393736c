"""What tests cost: `bash launch/test.sh --core-seconds` prints core-seconds by room and by test.

A shared fixture counts for the first test that uses it, on each worker. The CPU time of a child
process counts when it has ended.
"""

from collections import defaultdict
from collections.abc import Iterator
import os

import pytest


def _spent() -> float:
  """CPU seconds of this process and of its children that have ended."""
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system


class CoreSeconds:
  """Plugin that measures each test where it runs and prints the tables where all reports arrive."""

  def __init__(self) -> None:
    self._seconds: dict[str, float] = {}
    self._start = 0.0

  def pytest_runtest_logstart(self) -> None:
    self._start = _spent()

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_makereport(self, call: pytest.CallInfo) -> Iterator[pytest.TestReport]:
    report = yield
    if call.when == "teardown":
      report.user_properties.append(("core_seconds", _spent() - self._start))
    return report

  def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
    found = dict(report.user_properties)
    if report.when == "teardown" and "core_seconds" in found:
      self._seconds[report.nodeid] = found["core_seconds"]

  def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("core-seconds")
    rooms: dict[str, list[float]] = defaultdict(list)
    for node, seconds in self._seconds.items():
      *folders, _ = node.split("::")[0].split("/")
      rooms[folders[1] if len(folders) > 1 else "tests"].append(seconds)
    for name, found in sorted(rooms.items(), key=lambda row: -sum(row[1])):
      terminalreporter.write_line(f"{sum(found):8.1f}  {name} ({len(found)} tests)")
    terminalreporter.write_line(f"{sum(self._seconds.values()):8.1f}  all")
    terminalreporter.section("the 40 dearest tests")
    for node, seconds in sorted(self._seconds.items(), key=lambda row: -row[1])[:40]:
      terminalreporter.write_line(f"{seconds:8.1f}  {node}")


def pytest_addoption(parser: pytest.Parser) -> None:
  help = "print the CPU seconds of each room and of the dearest tests"
  parser.addoption("--core-seconds", action="store_true", help=help)


def pytest_configure(config: pytest.Config) -> None:
  if config.getoption("core_seconds"):
    config.pluginmanager.register(CoreSeconds(), "core-seconds-of-tests")
