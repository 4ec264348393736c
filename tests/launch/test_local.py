"""launch/local.sh: several processes on this machine."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.support.fake_gcloud import executable
from tests.support.processes import ROOT, wait_until

# In place of pomp_jax.main: says what it was given; ends with the status, or waits for
# SIGTERM.
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
  stamp = "".join(file.read_text() for file in sorted(ROOT.glob("requirements*.txt")))
  (tmp_path / "installed-requirements.txt").write_text(stamp)
  own = {"VENV": str(tmp_path), "LOG": str(tmp_path), "WAIT": "", "STATUSES": "0 0 0"}
  return os.environ | own | {"JAX_PLATFORMS": ""}


def start(environ, *arguments, **variables):
  command = ["bash", "launch/local.sh", *arguments]
  options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
  return subprocess.Popen(command, cwd=ROOT, env=environ | variables, **options)


def arguments(environ, index):
  return (
    (pathlib.Path(environ["LOG"]) / str(index)).read_bytes().decode().split("\0")[2:-1]
  )


def test_one_process_gets_nothing_more(environ):
  assert start(environ, "--workdir=a b", "$(touch evil)", STATUSES="2").wait() == 2
  assert arguments(environ, 0) == ["--workdir=a b", "$(touch evil)"]


def test_several_find_each_other_and_the_first_failure_is_the_status(environ):
  assert start(environ, "--workdir=a b", PROCESSES="3", STATUSES="0 75 1").wait() == 75
  coordinator = arguments(environ, 0)[1]
  assert coordinator.startswith("--coordinator=127.0.0.1:")
  for index in range(3):
    own = ["--workdir=a b", coordinator, "--num_processes=3", f"--process_id={index}"]
    assert arguments(environ, index) == own


@pytest.mark.parametrize(
  ("platforms", "given", "expected"),
  # on CPUs GPUs do not count
  [("", "", "0 1"), ("", "4,2,7", "4 2"), ("cpu", "0", "0 1")],
)
def test_each_has_a_gpu_of_its_own(environ, tmp_path, platforms, given, expected):
  variables = {"JAX_PLATFORMS": platforms, "CUDA_VISIBLE_DEVICES": given}
  assert start(environ, PROCESSES="2", **variables).wait() == 0
  assert [
    (tmp_path / f"gpus{i}").read_text().strip() for i in range(2)
  ] == expected.split()


@pytest.mark.parametrize(
  ("driver", "variables", "installed"),
  [
    ("580.65.06", {}, "jax[cuda13]"),
    ("570.00", {}, "jax[cuda12]"),
    ("580.65.06", {"JAX_PLATFORMS": "cpu"}, None),
    ("580.65.06", {"CUDA_VISIBLE_DEVICES": ""}, None),
  ],
)
def test_a_gpu_gets_the_jax_of_its_driver(
  environ, tmp_path, driver, variables, installed
):
  executable(
    tmp_path / "bin/nvidia-smi", f"#!/bin/sh\nprintf '{driver}\\n{driver}\\n'\n"
  )
  path = f"{tmp_path / 'bin'}:{environ['PATH']}"
  assert start(environ, PATH=path, **variables).wait() == 0
  file = tmp_path / "pip"
  assert (file.read_text().split()[-1] if file.exists() else None) == installed


def test_sigterm_reaches_all(environ, tmp_path):
  process = start(environ, PROCESSES="2", WAIT="1")
  wait_until(lambda: all((tmp_path / f"ready{index}").exists() for index in range(2)))
  process.send_signal(signal.SIGTERM)
  assert process.wait(300) == 75
  assert all((tmp_path / f"stopped{index}").exists() for index in range(2))
