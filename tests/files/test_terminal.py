"""Standard streams on a disk that is full: /dev/full, in a process of its own."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_PROGRAM = """
import sys
from pomp_jax.files.terminal import Output
sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
for number in range(3):
  print("line", number, flush=True)
  print("line", number, file=sys.stderr, flush=True)
print("end")
"""


@pytest.mark.parametrize(
  ("full", "stdout", "stderr"),
  [
    ("", "line 0\nline 1\nline 2\nend\n", "line 0\nline 1\nline 2\n"),
    (
      "stdout",
      None,
      "warning: <stdout> can't be written (No space left on device); output ends\n"
      "line 0\nline 1\nline 2\n",
    ),
    ("stderr", "line 0\nline 1\nline 2\nend\n", None),
    ("stdout stderr", None, None),
  ],
)
def test_a_program_ends_well_whatever_happens_to_its_log(full, stdout, stderr):
  with open("/dev/full", "w") as device:
    pipes = {name: device if name in full else subprocess.PIPE for name in ("stdout", "stderr")}
    done = subprocess.run(
      [sys.executable, "-c", _PROGRAM], cwd=ROOT, text=True, check=False, **pipes
    )
  assert (done.returncode, done.stdout, done.stderr) == (0, stdout, stderr)
