"""Compiled programs: what is said while JAX compiles, and the cache that a second
start hits."""

import json
import os
import pathlib
import re

import jax
from jax._src import monitoring
import jax.numpy as jnp
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.files import compilation, terminal
from pomp_jax.files.compilation import shown_compilations, use_compilation_cache
from tests.support.processes import Processes
from tests.support.small_run import settings

# Compiles a program and writes how often it was loaded from the cache, and where that
# is.
_PROGRAM = """
import json, os, sys
import jax
import jax.numpy as jnp
from pomp_jax import hosts
from pomp_jax.files.compilation import use_compilation_cache

arguments = dict(a.lstrip("-").split("=") for a in sys.argv[2:] if "=" in a)
if "num_processes" in arguments:
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  count, index = int(arguments["num_processes"]), int(arguments["process_id"])
  jax.distributed.initialize(arguments["coordinator"], count, index)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
use_compilation_cache("auto", arguments.get("workdir", "run"))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
found = {
  "hits": events.count("/jax/compilation_cache/cache_hits"),
  "folder": jax.config.jax_compilation_cache_dir,
}
with open(f"{sys.argv[1]}-{hosts.own_index()}.json", "w") as file:
  json.dump(found, file)
"""


@pytest.fixture
def updates(monkeypatch):
  found = {}
  monkeypatch.setattr(jax.config, "update", found.__setitem__)
  for name in (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
  ):
    monkeypatch.delenv(name, raising=False)
  return found


def test_where_it_is(updates, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  use_compilation_cache("auto", "runs/demo")
  folder = pathlib.Path(updates.pop("jax_compilation_cache_dir"))
  assert folder.parent == tmp_path / "pomp_jax" and folder.name.startswith("programs-")
  assert updates.pop("jax_persistent_cache_min_compile_time_secs") < 1
  use_compilation_cache(str(tmp_path / "own"), "runs/demo")
  assert updates["jax_compilation_cache_dir"] == str(tmp_path / "own")
  use_compilation_cache("", "runs/demo")
  assert updates["jax_compilation_cache_dir"] is None
  updates.clear()
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://mine")
  use_compilation_cache("auto", "runs/demo")
  assert updates == {}


def test_without_a_folder_to_write_to_there_is_none(
  updates, tmp_path, monkeypatch, caplog
):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  with caplog.at_level("INFO"):
    use_compilation_cache("auto", "runs/demo")
  assert updates == {"jax_compilation_cache_dir": None}
  assert f"{tmp_path / 'file'} is a file" in caplog.text
  with pytest.raises(ConfigError, match=r"config\.compilation_cache: .*file is a file"):
    validate(settings(compilation_cache=str(tmp_path / "file" / "programs")))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("other_sees", [True, False])
def test_several_processes_use_the_folder_that_all_of_them_see(
  updates, tmp_path, monkeypatch, is_first, other_sees
):
  """The first leaves a mark there until all have looked for it."""
  programs, told = tmp_path / "programs", []
  if not is_first:
    programs.mkdir()
    (programs / "of_first.mark").touch()

  def gather(seen, what):
    told.append([path.name for path in programs.iterdir()])
    return [("a", seen), ("b", other_sees)]

  monkeypatch.setattr(compilation.hosts, "n_processes", lambda: 2)
  monkeypatch.setattr(compilation.hosts, "is_first", lambda: is_first)
  monkeypatch.setattr(
    compilation.hosts,
    "from_first",
    lambda name, what: name if is_first else "of_first.mark",
  )
  monkeypatch.setattr(compilation.hosts, "gather", gather)
  found = compilation._problem(programs)
  assert found is None if other_sees else str(programs) in found
  [(mark,)] = told
  assert mark.endswith(".mark")
  # Which of them removes it.
  assert [path.name for path in programs.iterdir()] == ([] if is_first else [mark])
  if not is_first:
    (programs / mark).unlink()
    assert str(programs) in compilation._problem(programs)


def test_the_oldest_programs_make_room(updates, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(compilation, "_MAX_BYTES", 250)
  use_compilation_cache("auto", "run")
  folder = pathlib.Path(updates["jax_compilation_cache_dir"])
  folder.mkdir(parents=True)
  for age, name in enumerate("abcd"):
    (folder / f"{name}-cache").write_bytes(bytes(100))
    os.utime(folder / f"{name}-cache", (1e9 - age, 1e9 - age))
  use_compilation_cache("auto", "run")
  assert sorted(path.name for path in folder.iterdir()) == ["a-cache", "b-cache"]


def test_a_users_own_folder_is_not_cleared(updates, tmp_path, monkeypatch):
  """Nor the shared one by another process than the first."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(compilation, "_MAX_BYTES", 50)
  use_compilation_cache("auto", "run")
  shared = pathlib.Path(updates["jax_compilation_cache_dir"])
  for folder in (shared, tmp_path / "own"):
    folder.mkdir(parents=True)
    (folder / "a-cache").write_bytes(bytes(100))
  use_compilation_cache(str(tmp_path / "own"), "run")
  assert (tmp_path / "own" / "a-cache").exists()
  with monkeypatch.context() as other:
    other.setattr(compilation.hosts, "is_first", lambda: False)
    use_compilation_cache("auto", "run")
  assert (shared / "a-cache").exists()
  use_compilation_cache("auto", "run")
  assert not (shared / "a-cache").exists()


def test_a_users_own_threshold_counts_and_a_bucket_has_no_files_of_xlas(
  updates, monkeypatch
):
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
  monkeypatch.setattr(compilation, "_problem", lambda path: None)
  use_compilation_cache("auto", "gs://bucket/run")
  assert updates == {
    "jax_compilation_cache_dir": "gs://bucket/run/programs",
    "jax_persistent_cache_enable_xla_caches": "none",
  }


def test_each_kind_of_processor_has_its_own_programs(updates, tmp_path, monkeypatch):
  """By its name and by its instructions, on x86 and on Arm."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  read, folders = pathlib.Path.read_text, []
  for machine, processor, line in (
    ("x86_64", "a", "flags : sse avx"),
    ("x86_64", "a", "flags : sse"),
    ("x86_64", "b", "flags : sse"),
    ("amd64", "b", "flags : sse"),
    ("aarch64", "a", "Features : neon"),
    ("aarch64", "a", "Features : neon sve"),
  ):
    monkeypatch.setattr(
      compilation.platform, "machine", lambda machine=machine: machine
    )
    monkeypatch.setattr(
      compilation.platform, "processor", lambda processor=processor: processor
    )
    text = f"model name : x\n{line}\nbogomips : 1\n"
    monkeypatch.setattr(
      pathlib.Path,
      "read_text",
      lambda self, text=text: text if str(self) == "/proc/cpuinfo" else read(self),
    )
    use_compilation_cache("auto", "run")
    folders.append(updates["jax_compilation_cache_dir"])
  assert len(set(folders)) == len(folders)


def started(tmp_path, name, count, *more, **environ):
  (tmp_path / "program.py").write_text(_PROGRAM)
  own = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_COMPILATION_CACHE_DIR": "",
  }
  environ = {i: own | {"XDG_CACHE_HOME": str(environ[f"of_{i}"])} for i in range(count)}
  command = [str(tmp_path / "program.py"), str(tmp_path / name), *more]
  with Processes(count, command, environ=environ) as processes:
    processes.succeed(300)
  return [json.loads((tmp_path / f"{name}-{i}.json").read_text()) for i in range(count)]


def test_a_run_in_a_bucket_has_its_programs_there(store, tmp_path):
  folder = store.url(f"run-{tmp_path.name}")
  argument = f"--workdir={folder}"
  (first,) = started(tmp_path, "first", 1, argument, of_0=tmp_path / "home")
  assert first["folder"] == f"{folder}/programs"
  (second,) = started(tmp_path, "second", 1, argument, of_0=tmp_path / "other home")
  assert second["hits"] > first["hits"] == 0
  assert not (tmp_path / "home" / "pomp_jax").exists()


def test_processes_use_it_only_if_they_share_it(tmp_path):
  shared = started(
    tmp_path, "shared", 2, of_0=tmp_path / "home", of_1=tmp_path / "home"
  )
  assert len({found["folder"] for found in shared}) == 1 and shared[0]["folder"]
  assert not list((tmp_path / "home").rglob("*.mark"))
  apart = started(tmp_path, "apart", 2, of_0=tmp_path / "one", of_1=tmp_path / "two")
  assert [found["folder"] for found in apart] == [None, None]


@pytest.fixture
def said(monkeypatch, capsys, caplog):
  """A function that returns the lines since the last call; every program is worth
  one."""
  monkeypatch.setattr(compilation, "_SHOWN_SECONDS", 0.0)
  monkeypatch.setattr(terminal, "_start_thread", lambda: terminal._open[-1].tick())
  caplog.set_level("INFO", logger="pomp_jax")

  def since_last_call():
    found = [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()]
    found += caplog.messages
    caplog.clear()
    return [re.sub(r"[\d.]+ s$", "T s", line) for line in found]

  before = monitoring.get_scalar_listeners(), monitoring.get_event_duration_listeners()
  with shown_compilations():
    yield since_last_call
  assert not terminal._open
  assert before == (
    monitoring.get_scalar_listeners(),
    monitoring.get_event_duration_listeners(),
  )


def test_a_program_is_named_in_words(said, monkeypatch):
  @jax.jit
  def double_step(x):
    return 2 * x

  x = jnp.ones(3)
  said()
  double_step(x)
  assert said() == ["compiling double step", "compiled double step in T s"]
  double_step(x)
  assert said() == []
  jax.jit(lambda x: 2 * x)(x)
  assert said()[-1] == "compiled a program in T s"
  # Quick ones are not mentioned.
  monkeypatch.setattr(compilation, "_SHOWN_SECONDS", 1e9)
  jax.jit(lambda x: 3 * x)(x)
  assert said() == []


def test_a_failure_leaves_nothing_open(said):
  with pytest.raises(jax.errors.JaxRuntimeError):
    jax.jit(lambda x: x, compiler_options={"no_such_option": True})(1)
  assert said()[0] == "compiling a program"
  assert not terminal._open
