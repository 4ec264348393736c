"""A process of its own: its peak memory, its answer and its end."""

import pathlib
import signal

import numpy as np
import pytest

from pomp_jax.hosts import Preempted, peak_mib
from pomp_jax.rooms.baselines.own_process import ProcessError, in_own_process


@pytest.mark.slow("a GiB, and a process that imports JAX")
def test_the_peak_of_a_process_is_its_own(monkeypatch):
  ballast = np.ones(2**27)
  assert peak_mib() > 1024
  # The system's own figure (ru_maxrss) of a process is at least that of the one that
  # started it.
  assert in_own_process(peak_mib) < peak_mib() - ballast.nbytes / 2**21
  monkeypatch.setattr(pathlib.Path, "exists", lambda _: False)  # a system without /proc
  assert peak_mib() > 1024


@pytest.mark.parametrize(
  "function,argument,error,message",
  [
    (
      signal.raise_signal,
      signal.SIGKILL,
      ProcessError,
      "its process ended with status -9",
    ),
    (signal.raise_signal, signal.SIGTERM, Preempted, "SIGTERM"),
    (int, "x", ValueError, "invalid literal"),
  ],
)
def test_a_process_that_ends_without_an_answer(function, argument, error, message):
  with pytest.raises(error, match=message):
    in_own_process(function, argument)
