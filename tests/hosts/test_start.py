"""Several processes, for real: they join, or say why not and end."""

import pathlib

from processes import Processes
import pytest

from pomp_jax.hosts import agreement

SMALL = [
  "--config=configs/demo.py",
  "--config.data.n_classes=300",
  "--config.data.images_per_class=2",
  "--config.k=20",
  "--config.batch_size=16",
  "--config.steps=4",
  "--config.eval.images=64",
  "--config.checkpoint.every=2",
]


def command(workdir, *more):
  return ["-m", "pomp_jax.main", *SMALL, f"--workdir={workdir}", *more]


def errors(output):
  return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("absent", [0, 1])
def test_a_process_that_never_arrives(tmp_path, absent):
  with Processes(2, command(tmp_path / "run", "--start_timeout=3"), absent=[absent]) as run:
    ((index, (status, output)),) = run.finish().items()
  assert status == 75
  (line,) = errors(output)
  assert line.startswith("error: after 3 s not all processes have arrived at 127.0.0.1:")
  assert f"this is process {index} of 2 on " in line
  assert not (tmp_path / "run").exists()


def test_hosts_with_different_configs_are_named(tmp_path):
  with Processes(3, command(tmp_path / "run"), own={1: ["--config.k=30"]}) as run:
    found = run.finish()
  for status, output in found.values():
    assert status == 2, output
    (line,) = errors(output)
    assert line.startswith("error: the hosts disagree on config.k: 20 for process 0 on ")
    assert "30 for process 1 on" in line
    assert line.index("process 2") < line.index("30 for")
  assert not (tmp_path / "run").exists()


def test_what_one_process_finds_wrong_ends_all(tmp_path):
  """Process 1 can't read its CLIP: the other does not wait for it."""
  script = """
import sys
from unittest import mock
from absl import app
from pomp_jax import main
from pomp_jax.config import ConfigError
from pomp_jax.jobs import pretrain
real = pretrain.run
def run(config, workdir):
  import jax
  if jax.process_index() == 1:
    raise ConfigError("data.source", "x", "something on this host")
  import time
  time.sleep(100)
pretrain.run = run
main.config_flags  # the flags are defined
app.run(main.main, flags_parser=main.parse_flags)
"""
  file = tmp_path / "start.py"
  file.write_text(script)
  arguments = [str(file), *SMALL, f"--workdir={tmp_path}/run"]
  with Processes(2, arguments) as run:
    found = run.finish(60)
  assert [status for status, _ in found.values()] == [2, 2]
  assert errors(found[1][1]) == ["error: config.data.source: got 'x', takes something on this host"]
  (line,) = errors(found[0][1])
  assert line.startswith("error: process 1 on ")
  assert "ended: config.data.source: got 'x'" in line


def test_each_host_says_what_it_has(tmp_path):
  """And what is wrong alike everywhere is said by each, at once."""
  arguments = command(tmp_path / "run", "--config.mesh.class_size=2", "--config.batch_size=3")
  with Processes(2, arguments, devices=2) as run:
    found = run.finish()
  for index, (status, output) in found.items():
    assert status == 2, output
    assert f"process {index} of 2 on " in output
    assert "2 of 4 devices (cpu), mesh data 2 x class 2, started by flags" in output
    assert "config.batch_size: got 3, takes a multiple of 2" in output


def test_the_fingerprint_sees_every_file(tmp_path, monkeypatch):
  package = tmp_path / "pomp_jax"
  (package / "hosts").mkdir(parents=True)
  (package / "hosts" / "agreement.py").write_text("x = 1")
  (package / "names.tsv").write_text("a\tb\n")
  monkeypatch.setattr(agreement, "__file__", str(package / "hosts" / "agreement.py"))
  seen = [agreement.fingerprint_of_package()]
  for change in (
    lambda: (package / "names.tsv").write_text("a\tc\n"),
    lambda: (package / "names.tsv").rename(package / "more.tsv"),
    lambda: (package / "hosts" / "agreement.py").write_text("x = 2"),
  ):
    change()
    seen.append(agreement.fingerprint_of_package())
  (package / "__pycache__").mkdir()
  (package / "__pycache__" / "x.pyc").write_text("")
  assert agreement.fingerprint_of_package() == seen[-1]
  digests = [found["the code of pomp_jax"] for found in seen]
  assert len(set(digests)) == 4
  assert seen[0]["the version of jax"] == __import__("jax").__version__
  assert pathlib.Path(agreement.__file__).exists()
