"""The command line: every mistake is one line with the field, exit status 2, nothing
written."""

import errno
import logging
import re
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
from PIL import Image
import pytest

from pomp_jax import hosts
from pomp_jax import main as main_module
from pomp_jax.config import JOBS
from pomp_jax.errors import InputError
from pomp_jax.files.features import DamagedFeaturesError
from pomp_jax.files.run_folder import RunFolderError, write_json
from tests.support.command_line import handlers_kept, run_main
from tests.support.processes import ROOT

DEMO = f"--config={ROOT}/configs/demo.py"


@pytest.fixture(autouse=True)
def as_before(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with handlers_kept():
    yield


@pytest.fixture
def refused(capsys, tmp_path):
  """A function: a command line -> its line behind `error: `; it exits with 2 and
  writes nothing."""

  def run(*arguments):
    before = sorted(tmp_path.rglob("*"))
    status, lines = run_main(capsys, *arguments)
    assert (status, len(lines)) == (2, 1), lines
    assert sorted(tmp_path.rglob("*")) == before
    start, line = lines[0].split(" ", 1)
    assert start == "error:"
    return line

  return run


@pytest.fixture
def play(monkeypatch):
  def replace(run=lambda *_: None, check=lambda *_: None):
    played = SimpleNamespace(check=check, run=run)
    monkeypatch.setattr(main_module, "load_job", lambda name: played)

  return replace


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("optim.lrr=0.1", "unknown field config.optim.lrr (did you mean config.optim.lr?)"),
    ("lr=0.1", "did you mean config.optim.lr?"),
    ("optim.steps=3", "did you mean config.steps?"),
    ("promt.m=4", "unknown field config.promt.m (did you mean config.prompt.m?)"),
    ("optim.lr=fast", "config.optim.lr: got 'fast', expected a value of type float"),
    ("k=2.5", "config.k: got '2.5', expected a value of type int"),
    ("k=1", "config.k: got 1, expected 2 or more"),
    ("k=999999", "config.k: got 999999, expected at most the number of classes"),
    ("batch_size=12", "config.batch_size: got 12, expected a multiple of 8"),
    ("accumulate=3", "a multiple of 24 (data axis 8 x accumulate 3)"),
    (
      "data.root=a\0b",
      r"config.data.root: got 'a\x00b', expected a path without the character",
    ),
    (
      "mesh.class_size=3",
      "config.mesh.class_size: got 3, expected a divisor of the 8 devices",
    ),
    ("job=pretrian", "did you mean 'pretrain'?"),
    ("prompt.m=70", "config.prompt.m"),
    ("clip.model=/no/such/folder", "config.clip.model: got '/no/such/folder'"),
    ("clip.model=open_clip:ViT-B-16/none", "open_clip:MODEL/TAG with one of ViT-B-16/"),
    ("clip.model=ViT-B/16", "hub id OWNER/NAME such as openai/clip-vit-base"),
    ("eval.template=a photo", "config.eval.template"),
    ("prompt.init=one two three four five six", "config.prompt.init"),
  ],
)
def test_a_bad_field_is_one_line_and_writes_nothing(
  refused, monkeypatch, argument, expected
):
  monkeypatch.setattr(hosts, "devices", lambda **_: jax.devices()[:8])
  assert expected in refused(DEMO, "--workdir=run", f"--config.{argument}")


def test_a_workdir_that_can_not_be_is_all_that_is_said(refused, tmp_path, monkeypatch):
  """The cache of compiled programs, which may be in it, is not asked before."""
  cache = mock.Mock()
  monkeypatch.setattr(main_module, "use_compilation_cache", cache)
  (tmp_path / "file").write_text("")
  assert refused(DEMO, "--workdir=file/run").startswith("workdir file/run: ")
  assert not cache.called


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ([], "--config: nothing given"),
    ([DEMO, "--conf.k=3"], "conf"),
    (["--config=configs/none.py", "--workdir=x"], "configs/none.py"),
    (["--config=elsewhere/demo.py", "--workdir=x"], "elsewhere/demo.py; --config=demo"),
    (["--config=dmo:k=64"], "no packaged config 'dmo'; did you mean demo"),
    ([f"{DEMO}:q=64", "--workdir=x"], "unknown field config.q"),
    ([DEMO, "--config.data.root"], "--config.data.root: expected a value"),
    ([DEMO, "--workdir=x", "k=64"], "unknown argument 'k=64'"),
    # One class can't be told apart.
    (
      [DEMO, "--config.data.n_classes=1", "--config.negatives=all"],
      "config.negatives: got 'all', expected 2 classes or more",
    ),
  ],
)
def test_a_bad_command_line_is_one_line(refused, arguments, expected):
  assert expected in refused(*arguments)


@pytest.mark.parametrize("file", ["config.json", "results.json"])
def test_another_jobs_folder_is_left_alone(refused, tmp_path, play, file):
  play()
  write_json(tmp_path / file, {"job": "another", "seed": 0})
  assert f"{file} is of job='another'" in refused(
    "--config=analyse", f"--workdir={tmp_path}"
  )


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("def get_config():\n  c = dict(\n  return c\n", "FILE:2: .*was never closed"),
    (
      "def get_config():\n  return unknown\n",
      "FILE:2: NameError: name 'unknown' is not defined",
    ),
    ("def get_confg():\n  return base()\n", "FILE: has no function get_config"),
    (
      "import no_such_module\n",
      "FILE:1: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    (
      "def get_config():\n  c = base()\n  c.optim.lrr = 1\n  return c\n",
      r"FILE:4: unknown field lrr \(did you mean lr\?\)",
    ),
    (
      "def get_config():\n  c = base()\n  c.promt.m = 1\n  return c\n",
      "FILE:4: .*promt.*prompt",
    ),
    ("def get_config():\n  c = base()\n  c.optim.lr = 'x'\n  return c\n", ".*'lr'"),
  ],
)
def test_a_mistake_in_a_config_file_is_named_with_its_line(
  refused, tmp_path, text, expected
):
  file = tmp_path / "experiment.py"
  imports = "from pomp_jax.config import base; " if "base()" in text else ""
  file.write_text(imports + "\n" * bool(imports) + text)
  line = refused(f"--config={file}", "--workdir=run")
  assert re.match(expected.replace("FILE", re.escape(str(file))), line), line


@pytest.mark.parametrize(
  "argument",
  [
    "--workdir=https://bucket/run",
    "--config.data.cache=gs://",
    "--config.data.feature_store=s3:///features",
    "--config.prompt.init=x-new+1.0://prompt.npz",
  ],
)
def test_a_path_of_another_scheme_is_refused(refused, argument):
  line = refused(DEMO, "--workdir=run", argument)
  name, _, value = argument.partition("=")
  shown = name.lstrip("-") if name.startswith("--config.") else name
  assert line.startswith(f"{shown}: got ")
  assert value.split(";")[-1] in line and "gs://BUCKET/.." in line


@pytest.mark.parametrize("measures", [False, True])
def test_the_field_names_the_folder_of_compiled_programs(
  capsys, play, monkeypatch, tmp_path, measures
):
  """But for what measures compilation."""
  used = []
  monkeypatch.setattr(
    main_module, "use_compilation_cache", lambda *given: used.append(given)
  )
  play()
  folder, workdir = str(tmp_path / "programs"), str(tmp_path / "run")
  fields = [f"--config.compilation_cache={folder}", f"--config.dry_run={measures}"]
  run_main(capsys, DEMO, f"--workdir={workdir}", *fields)
  assert used == ([] if measures else [(folder, workdir)])


@pytest.mark.parametrize("field", ["data.cache", "data.feature_store"])
def test_a_cache_that_can_not_be_written_is_found_before_the_work(
  refused, tmp_path, field
):
  (tmp_path / "file").touch()
  folder = tmp_path / "file" / "cache"
  line = refused(DEMO, "--workdir=run", f"--config.{field}={folder}")
  assert line.startswith(
    f"config.{field}: got {str(folder)!r}, expected a folder that can"
  )
  assert line.endswith(f"{tmp_path}/file is a file; a folder is needed")


@pytest.mark.parametrize(
  ("field", "names", "expected"),
  [
    ("images", "star", "config.predict.images"),
    ("names", "star", "config.predict.names"),
    ("prompt", "star", "config.predict.prompt"),
    ("", "\n\n", "names.txt.*empty"),
    ("", "star\nring\nstar\n", "names.txt.*'star'"),
    ("", "star\n" + "very " * 150 + "long star\n", "positions"),
  ],
)
def test_bad_input_of_predict(refused, tmp_path, field, names, expected):
  (tmp_path / "names.txt").write_text(names)
  Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "a.png")
  fields = {"images": "a.png", "names": "names.txt", "prompt": "a photo of a {}."}
  fields |= {field: tmp_path / "none"} if field else {}
  options = [f"--config.predict.{name}={value}" for name, value in fields.items()]
  assert re.search(
    expected, refused(DEMO, "--workdir=run", "--config.job=predict", *options)
  )


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (RunFolderError("config.json: not JSON"), 2),
    (DamagedFeaturesError("block-00001.npy: can't be read"), 1),
  ],
)
def test_bad_input_is_not_what_fails_in_the_midst(
  capsys, play, tmp_path, error, expected
):
  play(**{"check" if expected == 2 else "run": mock.Mock(side_effect=error)})
  assert run_main(capsys, DEMO, f"--workdir={tmp_path}") == (
    expected,
    [f"error: {error}"],
  )
  assert (tmp_path / "error.txt").exists() == (expected == 1)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("job", JOBS)
def test_several_processes_are_for_the_jobs_of_several(
  refused, play, monkeypatch, job, dry_run
):
  play(check=mock.Mock(side_effect=InputError("checked")))
  # a dry run is of some jobs
  monkeypatch.setattr(main_module, "validate", lambda _: None)
  monkeypatch.setattr(main_module.hosts, "n_processes", lambda: 2)
  fields = [
    f"--config.job={job}",
    f"--config.dry_run={dry_run}",
    "--config.compilation_cache=",
  ]
  line = f"job {job!r} runs in one process; 2 were started"
  assert refused(DEMO, *fields) == ("checked" if JOBS[job].processes else line)


_FULL = OSError(errno.ENOSPC, "No space left on device", "plots/accuracy.png")
_OF_A_LIBRARY = ValueError("could not save the figure")
_OF_A_LIBRARY.__context__ = _FULL


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (_FULL, "plots/accuracy.png: the disk fails (No space left on device)"),
    (_OF_A_LIBRARY, "plots/accuracy.png: the disk fails (No space left on device)"),
    (
      OSError("4096 requested and 0 written"),
      "the disk fails (4096 requested and 0 written)",
    ),
    (
      RuntimeError("INTERNAL: write failed: No space left on device"),
      "the disk fails (No space left on device)",
    ),
  ],
)
def test_a_full_disk_anywhere_is_one_line(capsys, play, error, expected):
  play(mock.Mock(side_effect=error))
  assert run_main(capsys, DEMO, "--workdir=run") == (1, [f"error: {expected}"])


def test_any_other_error_keeps_its_traceback(capsys, play, tmp_path):
  play(
    mock.Mock(
      side_effect=FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
    )
  )
  with pytest.raises(FileNotFoundError) as found:
    run_main(capsys, DEMO, f"--workdir={tmp_path}")
  assert (tmp_path / "error.txt").read_text() == f"FileNotFoundError: {found.value}"


def test_names_of_files_direct_no_terminal(refused, capsys, tmp_path):
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  (tmp_path / "\x1b]0;x\x07").write_text("cat\ncat")
  fields = {"images": tmp_path, "names": f"{tmp_path}/\x1b]0;x\x07", "prompt": "{}."}
  options = [f"--config.predict.{field}={value}" for field, value in fields.items()]
  line = refused(DEMO, "--config.job=predict", *options)
  assert line.isprintable() and "?]0;x?" in line
  logging.getLogger("pomp_jax.data").warning("%s: \x1b[31m%s", "a\x9b1mb", "c\rd")
  assert capsys.readouterr().out.endswith("  a?1mb: ?[31mc?d\n")


def test_a_warning_while_the_config_is_read_looks_like_any_line(
  capsys, tmp_path, monkeypatch
):
  """`own` opens the pictures before the fields are known."""
  monkeypatch.setattr(logging.getLogger("pomp_jax"), "handlers", [])
  for name in ("cup", "plate"):
    (tmp_path / "pictures" / name).mkdir(parents=True)
    (tmp_path / "pictures" / name / "a.jpg").touch()
    (tmp_path / "pictures" / name / "notes.txt").touch()
  assert (
    main_module.main([f"--config=own:root={tmp_path}/pictures,clip=world,k=1"]) == 2
  )
  shown = capsys.readouterr()
  lines = [line for text in shown for line in text.splitlines() if "notes.txt" in line]
  assert [bool(re.match(r"\d\d:\d\d:\d\d  \S", line)) for line in lines] == [True]
