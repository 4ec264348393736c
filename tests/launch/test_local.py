"""launch/local.sh: several processes on this machine."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.support.fake_gcloud import ROOT, executable, wait_for

# In place of pomp_jax.main: says what it was given; ends with the status, or waits for SIGTERM.
_PYTHON = """#!/usr/bin/env bash
if [[ "$1 $2" == "-m pip" ]]; then echo "$*" >> "$LOG/pip"; exit "${{PIP_STATUS:-0}}"; fi
if [[ "$1 $2" != "-m pomp_jax.main" ]]; then exec "{python}" "$@"; fi
index="${{!#}}"; index="${{index#*=}}"
[[ "$index" =~ ^[0-9]+$ ]] || index=0
printf '%s\\0' "$@" > "$LOG/$index"
echo "$CUDA_VISIBLE_DEVICES" > "$LOG/gpus$index"
if [[ -n "$WAIT" ]]; then
  trap 'echo stopped > "$LOG/stopped$index"; exit 75' TERM
  touch "$LOG/ready$index"
  while :; do sleep 0.05; done
fi
exit "$(cut -d ' ' -f $((index + 1)) <<< "$STATUSES")"
"""


@pytest.fixture
def environ(tmp_path):
  executable(tmp_path / "bin" / "python", _PYTHON.format(python=sys.executable))
  requirements = sorted(ROOT.glob("requirements*.txt"))
  stamp = "".join(file.read_text() for file in requirements)
  (tmp_path / "installed-requirements.txt").write_text(stamp)
  return os.environ | {
    "VENV": str(tmp_path),
    "LOG": str(tmp_path),
    "WAIT": "",
    "STATUSES": "0 0 0",
    "JAX_PLATFORMS": "",
  }


def start(environ, *arguments, **variables):
  command = ["bash", "launch/local.sh", *arguments]
  options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
  return subprocess.Popen(command, cwd=ROOT, env=environ | variables, **options)


def arguments(environ, index):
  return (pathlib.Path(environ["LOG"]) / str(index)).read_bytes().decode().split("\0")[2:-1]


def test_one_process_gets_nothing_more(environ):
  assert start(environ, "--workdir=a b", "$(touch evil)", STATUSES="2").wait() == 2
  assert arguments(environ, 0) == ["--workdir=a b", "$(touch evil)"]


def test_several_find_each_other_and_the_first_failure_is_the_status(environ):
  assert start(environ, "--workdir=a b", PROCESSES="3", STATUSES="0 75 1").wait() == 75
  coordinators = set()
  for index in range(3):
    first, coordinator, count, own = arguments(environ, index)
    assert (first, count, own) == ("--workdir=a b", "--num_processes=3", f"--process_id={index}")
    coordinators.add(coordinator)
  (coordinator,) = coordinators
  assert coordinator.startswith("--coordinator=127.0.0.1:")


@pytest.mark.parametrize(
  ("platforms", "given", "expected"),
  [("", "", "0 1"), ("", "4,2,7", "4 2"), ("cpu", "0", "0 1")],  # on CPUs GPUs do not count
)
def test_each_has_a_gpu_of_its_own(environ, tmp_path, platforms, given, expected):
  variables = {"JAX_PLATFORMS": platforms, "CUDA_VISIBLE_DEVICES": given}
  assert start(environ, PROCESSES="2", **variables).wait() == 0
  found = [(tmp_path / f"gpus{index}").read_text().strip() for index in range(2)]
  assert found == expected.split()


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    ({"PROCESSES": "0"}, "PROCESSES=0 is not a number of processes"),
    (
      {"PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "3"},
      "PROCESSES=2, but CUDA_VISIBLE_DEVICES=3 has fewer",
    ),
  ],
)
def test_wrong_variables(environ, variables, message):
  process = start(environ, **variables)
  assert process.wait() == 1
  assert message in process.stderr.read()


def with_gpu(environ, tmp_path, driver):
  """An environment whose `nvidia-smi` finds a GPU."""
  program = tmp_path / "bin" / "nvidia-smi"
  executable(program, f"#!/usr/bin/env bash\nprintf '{driver}\\n{driver}\\n'\n")
  return environ | {"PATH": f"{program.parent}:{environ['PATH']}"}


@pytest.mark.parametrize(
  ("driver", "variables", "installed"),
  [
    ("580.65.06", {}, "jax[cuda13]"),
    ("570.00", {}, "jax[cuda12]"),
    ("580.65.06", {"JAX_PLATFORMS": "cpu"}, None),
    ("580.65.06", {"CUDA_VISIBLE_DEVICES": ""}, None),
  ],
)
def test_a_gpu_gets_the_jax_of_its_driver(environ, tmp_path, driver, variables, installed):
  process = start(with_gpu(environ, tmp_path, driver), **variables)
  assert process.wait() == 0
  file = tmp_path / "pip"
  assert (file.read_text().split()[-1] if file.exists() else None) == installed


def test_a_gpu_with_a_jax_for_it_gets_no_other(environ, tmp_path):
  (tmp_path / "plugin" / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
  process = start(with_gpu(environ, tmp_path, "580.1"), PYTHONPATH=str(tmp_path / "plugin"))
  assert process.wait() == 0
  assert not (tmp_path / "pip").exists()


def test_a_jax_that_can_not_be_installed_is_an_error(environ, tmp_path):
  process = start(with_gpu(environ, tmp_path, "580.1"), PIP_STATUS="1")
  assert process.wait() == 1
  assert "jax[cuda13] can't be installed" in process.stderr.read()
  assert not (tmp_path / "0").exists()


def test_constraints_are_installed_once_until_they_change(environ, tmp_path):
  pins, log = tmp_path / "pins.txt", tmp_path / "pip"
  for releases, installs in [("numpy==2.0", 1), ("numpy==2.0", 1), ("numpy==2.1", 2)]:
    pins.write_text(releases)
    assert start(environ, JAX_PLATFORMS="cpu", CONSTRAINTS=str(pins)).wait() == 0
    calls = [line for line in log.read_text().splitlines() if "pip install" in line]
    assert len(calls) == installs
    assert all(f"--constraint {pins} -r requirements.txt" in call for call in calls)


# A slow `kill`: when it is done with them, the processes are gone, and count by their own status.
_SLOWLY = {"BASH_FUNC_kill%%": '() { builtin kill "$@"; local s=$?; sleep 0.5; return $s; }'}


@pytest.mark.parametrize("variables", [{}, _SLOWLY], ids=["", "slowly"])
def test_sigterm_reaches_all(environ, tmp_path, variables):
  process = start(environ, PROCESSES="2", WAIT="1", **variables)
  wait_for(lambda: all((tmp_path / f"ready{index}").exists() for index in range(2)))
  process.send_signal(signal.SIGTERM)
  assert process.wait(300) == 75
  assert all((tmp_path / f"stopped{index}").exists() for index in range(2))


def test_sigterm_while_they_are_started_reaches_those_that_come_later(environ, tmp_path):
  # Before each command of the launcher: once its first process is up, it gets the signal.
  (tmp_path / "traced").write_text("""
if [[ "$0" == launch/local.sh ]]; then
  trap 'if [[ -z "${sent:-}" && "${processes[0]:-}" && ! "${processes[1]:-}" ]]; then
    until [[ -e "$LOG/ready0" ]]; do sleep 0.05; done
    sent=1
    kill -TERM $$
  fi' DEBUG
fi
""")
  process = start(environ, PROCESSES="3", WAIT="1", BASH_ENV=str(tmp_path / "traced"))
  try:
    assert process.wait(300) == 75
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  assert (tmp_path / "stopped0").exists()
