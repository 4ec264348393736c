"""The command line: every mistake is one line with the field, exit status 2, nothing written."""

import errno
import logging
import os
import pathlib
import re
import resource
import subprocess
import sys
from types import SimpleNamespace

from absl import flags
import numpy as np
from PIL import Image
import pytest

from pomp_jax import main as main_module
from pomp_jax.config import JOBS
from pomp_jax.errors import InputError
from pomp_jax.files import paths, terminal
from pomp_jax.files.array_cache import DamagedBlockError, FeatureCacheError
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolderError, RunFolderWriteError
from tests.support.command_line import handlers_kept, parse, run_main

ROOT = pathlib.Path(__file__).parent.parent
DEMO = f"--config={ROOT}/configs/demo.py"


@pytest.fixture(autouse=True)
def as_before():
  with handlers_kept():
    yield


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("--config.optim.lrr=0.1", "did you mean config.optim.lr?"),
    ("--config.lr=0.1", "did you mean config.optim.lr?"),
    ("--config.zzz=1", "config.zzz"),
    ("--config.optim.lr=fast", "config.optim.lr: got 'fast', expected a value of type float"),
    ("--config.k=2.5", "config.k: got '2.5', expected a value of type int"),
    ("--config.prompt.class_specific=perhaps", "config.prompt.class_specific"),
    ("--config.k=1", "config.k: got 1, expected 2 or more"),
    ("--config.k=999999", "config.k: got 999999, expected at most the number of classes"),
    ("--config.batch_size=12", "config.batch_size: got 12, expected a multiple of 8"),
    ("--config.batch_size=0", "config.batch_size: got 0, expected 1 or more"),
    ("--config.accumulate=3", "config.batch_size"),
    (
      "--config.mesh.class_size=3",
      "config.mesh.class_size: got 3, expected a divisor of the 8 devices",
    ),
    ("--config.job=pretrian", "did you mean 'pretrain'?"),
    ("--config.correction=log2", "one of log, log10, none"),
    ("--config.prompt.position=centre", "one of end, middle, front"),
    ("--config.prompt.m=70", "config.prompt.m"),
    ("--config.clip.model=/no/such/folder", "config.clip.model: got '/no/such/folder'"),
    ("--config.optim.lr=nan", "config.optim.lr: got nan, expected 0 or more"),
    ("--config.clip.memory_gib=-1", "config.clip.memory_gib: got -1.0, expected 0 or more"),
    ("--config.eval.template=a photo", "config.eval.template"),
    ("--config.prompt.init=one two three four five six", "config.prompt.init"),
    ("--conf.k=3", "conf"),
  ],
)
def test_a_bad_field_is_one_line_and_writes_nothing(capsys, tmp_path, argument, expected):
  workdir = tmp_path / "run"
  status, lines = run_main(capsys, DEMO, f"--workdir={workdir}", argument)
  assert status == 2
  assert len(lines) == 1
  assert lines[0].startswith("error: ")
  assert expected in lines[0]
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ([], "--config: nothing given"),
    ([DEMO, "--workdir="], "--workdir: nothing given"),
    (["--config=configs/none.py", "--workdir=x"], "configs/none.py"),
    (["--config=elsewhere/demo.py", "--workdir=x"], "elsewhere/demo.py; --config=demo"),
    (["--config=dmo:k=64"], "no packaged config 'dmo'; did you mean demo"),
    (["--config", "few_shot"], "no packaged config 'few_shot'"),
    ([f"{DEMO}:q=64", "--workdir=x"], "config.q: got 'a value', expected none"),
    ([f"{DEMO}:k=many", "--workdir=x"], "config.k: got 'many', expected a value of type int"),
    ([DEMO, "--workdir=x", "k=64"], "unknown argument 'k=64'"),
  ],
)
def test_a_bad_command_line_is_one_line(capsys, arguments, expected):
  status, lines = run_main(capsys, *arguments)
  assert status == 2
  assert len(lines) == 1
  assert expected in lines[0]


def test_a_config_file_with_an_unknown_key_or_type(capsys, tmp_path):
  for line, expected in [("c.optim.lrr = 1", "lrr"), ("c.optim.lr = 'x'", "'lr'")]:
    file = tmp_path / "experiment.py"
    file.write_text(
      f"from pomp_jax.config import base\ndef get_config():\n  c = base()\n  {line}\n  return c\n"
    )
    status, lines = run_main(capsys, f"--config={file}", f"--workdir={tmp_path}/run")
    assert status == 2
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize(
  ("text", "line", "expected"),
  [
    ("def get_config():\n  c = dict(\n  return c\n", 2, "was never closed"),
    ("def get_config():\n  return unknown\n", 2, "NameError: name 'unknown' is not defined"),
    ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
    ("def get_config():\n  return 1 / 0\n", 2, "ZeroDivisionError: division by zero"),
  ],
)
def test_a_config_file_that_is_no_python_is_named_with_the_line(
  capsys, tmp_path, text, line, expected
):
  file = tmp_path / "experiment.py"
  file.write_text(text)
  status, lines = run_main(capsys, f"--config={file}", f"--workdir={tmp_path}/run")
  assert (status, len(lines)) == (2, 1)
  assert lines[0].startswith(f"error: {file}:{line}: ")
  assert expected in lines[0]


@pytest.mark.parametrize(
  "argument",
  [
    "--workdir=hdfs://bucket/run",
    "--config.data.root=az://bucket/images",
    "--config.eval.cache=gs://",
    "--config.data.feature_cache=s3:///cache",
    "--config.evaluate.prompts=a.npz;hdfs://bucket/b.npz",
    "--config.prepare.input=file:///images.tar",
    "--config.clip.model=https://host/weights.pt",
    "--config.gradient_bias.prompt=x-new+1.0://prompt.npz",
  ],
)
def test_a_path_of_another_scheme_is_refused_and_makes_no_folder(
  capsys, tmp_path, monkeypatch, argument
):
  monkeypatch.chdir(tmp_path)
  status, lines = run_main(capsys, DEMO, "--workdir=run", argument)
  name, _, value = argument.partition("=")
  assert (status, len(lines)) == (2, 1)
  shown = name.lstrip("-") if name.startswith("--config.") else name
  assert lines[0].startswith(f"error: {shown}: got ")
  assert value.split(";")[-1] in lines[0] and "gs://BUCKET/.." in lines[0]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("argument", "library"),
  [("--workdir=gs://bucket/run", "gcsfs"), ("--config.eval.cache=s3://bucket/cache", "s3fs")],
)
def test_a_bucket_without_its_library_names_the_package(
  capsys, tmp_path, monkeypatch, argument, library
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(paths, "_release_of", lambda name: None)
  status, lines = run_main(capsys, DEMO, "--workdir=run", argument)
  assert (status, len(lines)) == (2, 1)
  assert f"pip install '{library}>=" in lines[0] and argument.rpartition("=")[2] in lines[0]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("field", "beside"),
  [
    ("eval.cache", ()),
    ("data.cache", ()),
    ("data.feature_cache", ("--config.job=cache",)),
    ("data.feature_cache", ("--config.data.features=once",)),
  ],
)
def test_a_cache_that_can_not_be_written_is_found_before_the_work(capsys, tmp_path, field, beside):
  (tmp_path / "file").touch()
  folder = tmp_path / "file" / "cache"
  arguments = [DEMO, f"--workdir={tmp_path}/run", f"--config.{field}={folder}", *beside]
  status, lines = run_main(capsys, *arguments)
  assert (status, len(lines)) == (2, 1)
  assert lines[0].startswith(
    f"error: config.{field}: got {str(folder)!r}, expected a folder that can"
  )
  assert lines[0].endswith(f"{tmp_path}/file is a file; a folder is needed")
  assert not (tmp_path / "run").exists()


def test_one_class_can_not_be_told_apart(capsys, tmp_path):
  fields = ["--config.data.n_classes=1", "--config.negatives=all"]
  status, lines = run_main(capsys, DEMO, f"--workdir={tmp_path}/run", *fields)
  assert (status, len(lines)) == (2, 1)
  assert lines[0].startswith("error: config.negatives: got 'all', expected 2 classes or more")
  assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file(capsys, tmp_path):
  file = tmp_path / "file"
  file.write_text("mine")
  status, lines = run_main(capsys, DEMO, f"--workdir={file}")
  assert status == 2
  assert len(lines) == 1
  assert str(file) in lines[0]
  assert file.read_text() == "mine"


def test_argument_string_and_overrides(tmp_path):
  parse(f"{DEMO}:k=64,m=16,lr=0.5", f"--workdir={tmp_path}", "--config.optim.lr=0.01")
  config = flags.FLAGS.config
  assert (config.k, config.prompt.m, config.optim.lr) == (64, 16, 0.01)


class TestPredict:
  """Bad input of the predict job."""

  @pytest.fixture
  def arguments(self, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "names.txt").write_text("red star\nblue ring\n")
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    return {
      "job": "predict",
      "predict.images": tmp_path / "images",
      "predict.names": tmp_path / "names.txt",
      "predict.prompt": "a photo of a {}.",
    }

  def complain(self, capsys, tmp_path, arguments, **changes):
    arguments = arguments | {f"predict.{key}": value for key, value in changes.items()}
    options = [f"--config.{key}={value}" for key, value in arguments.items()]
    status, lines = run_main(capsys, DEMO, f"--workdir={tmp_path}/run", *options)
    assert status == 2, lines
    assert len(lines) == 1
    assert not (tmp_path / "run").exists()
    return lines[0]

  def test_missing_paths(self, capsys, tmp_path, arguments):
    for field in ("images", "names", "prompt"):
      line = self.complain(capsys, tmp_path, arguments, **{field: tmp_path / "none"})
      assert f"config.predict.{field}" in line

  @pytest.mark.parametrize(
    ("text", "expected"),
    [
      ("", "empty"),
      ("\n\n", "empty"),
      ("star\nring\nstar\n", "'star'"),
    ],
  )
  def test_bad_names(self, capsys, tmp_path, arguments, text, expected):
    (tmp_path / "names.txt").write_text(text)
    line = self.complain(capsys, tmp_path, arguments)
    assert expected in line
    assert "names.txt" in line

  def test_a_name_longer_than_the_positions(self, capsys, tmp_path, arguments):
    (tmp_path / "names.txt").write_text("star\n" + "very " * 150 + "long star\n")
    assert "positions" in self.complain(capsys, tmp_path, arguments)

  def test_prompts_that_do_not_fit(self, capsys, tmp_path, arguments):
    file = tmp_path / "prompt.npz"
    save_prompt(file, Prompt(np.zeros((4, 7), np.float32), clip_model="other"))
    line = self.complain(capsys, tmp_path, arguments, prompt=file)
    assert "prompt.npz" in line and "width 7" in line
    file.write_bytes(file.read_bytes()[:100])
    assert "prompt.npz" in self.complain(capsys, tmp_path, arguments, prompt=file)
    np.savez(file, context=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "prompt.npz" in self.complain(capsys, tmp_path, arguments, prompt=file)


def test_export_of_bad_files(capsys, tmp_path):
  """One line and status 2 as well, through the config file of the job."""
  (tmp_path / "names.json").write_text('{"images": []}')
  (tmp_path / "p.pth").write_bytes(b"PK")
  workdir = f"--workdir={tmp_path}/run"
  for argument, expected in [
    (f"prompt={tmp_path}/p.pth,format=npz", "p.pth: the file is not a whole zip"),
    (f"prompt=a {{}},format=detic,names={tmp_path}/names.json", "names.json: the file is without"),
    ("format=detic,synonyms=perhaps", "config.export.synonyms: got 'perhaps'"),
  ]:
    status, lines = run_main(capsys, f"--config={ROOT}/configs/export.py:{argument}", workdir)
    assert (status, len(lines)) == (2, 1)
    assert expected in lines[0]
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (RunFolderError("config.json: not JSON"), 2),
    (RunFolderWriteError("config.json: can't be written"), 1),
    (FeatureCacheError("no cache.json in it"), 2),
    (DamagedBlockError("block-00001.npy: can't be read"), 1),
  ],
)
def test_bad_input_is_not_what_fails_in_the_midst(capsys, tmp_path, monkeypatch, error, expected):
  def fail(*_):
    raise error

  monkeypatch.setattr(main_module, "load_job", lambda name: SimpleNamespace(check=fail, run=fail))
  assert run_main(capsys, DEMO, f"--workdir={tmp_path}/run") == (expected, [f"error: {error}"])


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("job", JOBS)
def test_several_processes_are_for_the_jobs_that_run_in_them(
  capsys, tmp_path, monkeypatch, job, dry_run
):
  """The others end with one line, before their check is called."""

  def check(*_):
    raise InputError("checked")

  monkeypatch.setattr(main_module, "validate", lambda _: None)  # a dry run is of some jobs
  monkeypatch.setattr(main_module, "load_job", lambda name: SimpleNamespace(check=check))
  monkeypatch.setattr(main_module.hosts, "n_processes", lambda: 2)
  fields = [f"--config.job={job}", f"--config.dry_run={dry_run}", "--config.compilation_cache="]
  refused = f"job {job!r} runs in one process; 2 were started"
  expected = "checked" if JOBS[job].processes else refused
  found = run_main(capsys, DEMO, f"--workdir={tmp_path}/run", *fields)
  assert found == (2, [f"error: {expected}"])
  assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_at_the_start_is_a_failure(capsys, tmp_path, monkeypatch):
  save_prompt(tmp_path / "p.npz", Prompt(np.zeros((4, 7), np.float32), clip_model="some"))

  def fail(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", fail)
  arguments = [f"--config={ROOT}/configs/export.py:prompt={tmp_path}/p.npz,format=npz"]
  status, lines = run_main(capsys, *arguments, f"--workdir={tmp_path}/run")
  assert (status, len(lines)) == (1, 1)
  assert lines[0].endswith("prompt.npz: can't be written (No space left on device)")


def from_the_disk():
  raise OSError(errno.ENOSPC, "No space left on device", "plots/accuracy.png")


def from_numpy():
  raise OSError("4096 requested and 0 written")


def from_a_library():
  try:
    from_the_disk()
  except OSError:
    raise ValueError("could not save the figure") from None


def from_c():
  raise RuntimeError("INTERNAL: write failed: No space left on device")


@pytest.mark.parametrize(
  ("fail", "expected"),
  [
    (from_the_disk, "plots/accuracy.png: the disk fails (No space left on device)"),
    (from_a_library, "plots/accuracy.png: the disk fails (No space left on device)"),
    (from_numpy, "the disk fails (4096 requested and 0 written)"),
    (from_c, "the disk fails (No space left on device)"),
  ],
)
def test_a_full_disk_anywhere_is_one_line(capsys, tmp_path, monkeypatch, fail, expected):
  played = SimpleNamespace(check=lambda *_: None, run=lambda *_: fail())
  monkeypatch.setattr(main_module, "load_job", lambda name: played)
  assert run_main(capsys, DEMO, f"--workdir={tmp_path}/run") == (1, [f"error: {expected}"])


def test_any_other_error_keeps_its_traceback(capsys, tmp_path, monkeypatch):
  def fail(*_):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

  played = SimpleNamespace(check=lambda *_: None, run=fail)
  monkeypatch.setattr(main_module, "load_job", lambda name: played)
  with pytest.raises(FileNotFoundError):
    run_main(capsys, DEMO, f"--workdir={tmp_path}/run")


def test_a_save_that_fails_is_told_once(tmp_path, caplog):
  """Not also by each of Orbax's threads, with its traceback."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fail_to_save(folder):
    with Checkpoints(folder) as checkpoints:
      resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
      try:
        with pytest.raises(CheckpointError, match="step 1"):
          checkpoints.save(1, {"values": np.random.default_rng(0).random(100_000)}, {})
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  fail_to_save(tmp_path / "before")
  assert any("orbax" in record.pathname for record in caplog.records)
  caplog.clear()
  terminal.set_up_logging()
  fail_to_save(tmp_path / "after")
  assert not caplog.messages


def test_the_folder_of_a_run_says_that_it_is_alive(capsys, tmp_path, monkeypatch):
  found = []
  played = SimpleNamespace(
    check=lambda *_: found.append(list(tmp_path.iterdir())),
    run=lambda *_: found.append([path.name for path in tmp_path.iterdir()]),
  )
  monkeypatch.setattr(main_module, "load_job", lambda name: played)
  for dry_run in (False, True):
    run_main(capsys, DEMO, f"--workdir={tmp_path}", f"--config.dry_run={dry_run}")
  assert found == [[], ["alive.json"], [], []]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job", ["pretrain", "prepare"])
def test_the_first_line_names_devices_and_precision(capsys, tmp_path, monkeypatch, job):
  """Except of a job that uses no devices."""
  played = SimpleNamespace(check=lambda *_: None, run=lambda *_: print("the job"))
  monkeypatch.setattr(main_module, "load_job", lambda name: played)
  parse(
    DEMO,
    f"--workdir={tmp_path}/run",
    f"--config.job={job}",
    f"--config.prepare.input={tmp_path}",
    "--config.clip.dtype=bfloat16",
    "--config.mesh.class_size=2",
  )
  assert main_module.main([]) == 0
  *first, last = capsys.readouterr().out.splitlines()
  assert last == "the job"
  expected = "8 of 8 devices (cpu), bfloat16, mesh data 4 x class 2"
  if job == "prepare":
    assert not first
  else:
    # The name of the host can be long.
    line = " ".join("".join(first).split())
    assert re.match(r"\d\d:\d\d:\d\d process 0 of 1 on ", line) and line.endswith(expected)


def test_the_module_is_an_entry():
  process = subprocess.run(
    [sys.executable, "-m", "pomp_jax.main"], capture_output=True, text=True, cwd=ROOT, check=False
  )
  assert process.returncode == 2
  assert process.stderr.startswith("error: --config: nothing given; takes a file, or a name")


def test_names_of_files_direct_no_terminal(capsys, tmp_path):
  """Neither an error nor a log line has an escape code from a name in it."""
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  (tmp_path / "\x1b]0;x\x07").write_text("cat\ncat")
  status, lines = run_main(
    capsys,
    DEMO,
    "--config.job=predict",
    f"--config.predict.images={tmp_path}",
    f"--config.predict.names={tmp_path}/\x1b]0;x\x07",
    "--config.predict.prompt={}.",
    f"--workdir={tmp_path}/run",
  )
  assert status == 2
  (line,) = lines
  assert line.isprintable() and "?]0;x?" in line
  logging.getLogger("pomp_jax.data").warning("%s: \x1b[31m%s", "a\x9b1mb", "c\rd")
  assert capsys.readouterr().out.endswith("  a?1mb: ?[31mc?d\n")
