"""Cores of a process: affinity, a container's quota, and processes beside it."""

import os

import pytest

from pomp_jax import hosts
from pomp_jax.hosts import cores


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
  """Eight cores without a quota; the file of the quota."""
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
  monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
  monkeypatch.setattr(cores, "_n_sharers", 1)
  return tmp_path / "cpu.max"


@pytest.mark.parametrize(
  ("quota", "expected"),
  [(None, 8), ("max 100000", 8), ("250000 100000", 2), ("5000 100000", 1), ("?", 8)],
)
def test_a_quota_limits_the_affinity(machine, quota, expected):
  if quota:
    machine.write_text(quota)
  assert hosts.own_cores() == expected


@pytest.mark.parametrize(
  ("others", "expected"),
  [
    ([], 8),
    ([["here", list(range(8))]], 4),
    ([["there", list(range(8))]], 8),
    ([["here", [8, 9]]], 8),
    ([["here", list(range(8))]] * 20, 1),
  ],
)
def test_processes_on_the_same_cores_share_them(monkeypatch, others, expected):
  """On this host; a launcher may have given each process cores of its own."""
  monkeypatch.setattr(cores, "gather", lambda own, *_: [["here", own], *others])
  hosts.share_cores(1.0)
  assert hosts.own_cores() == expected


def test_alone_it_shares_with_nobody():
  hosts.share_cores(1.0)
  assert hosts.own_cores() == 8
