"""docs/start/pomp.ipynb, executed once in an empty folder, without the network; its
files are checked."""

import json
import os

import nbclient
import nbformat
import numpy as np
import pytest

from pomp_jax.clip.load import load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import load_prompt
from tests.support.processes import ROOT, environment

NOTEBOOK = ROOT / "docs" / "start" / "pomp.ipynb"


def test_the_stored_notebook_has_no_outputs():
  book = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(book)
  code = [cell for cell in book.cells if cell.cell_type == "code"]
  assert code and all(
    (cell.outputs, cell.execution_count) == ([], None) for cell in code
  )


@pytest.mark.slow("executes the notebook, with two trainings")
def test_what_it_leaves(tmp_path, monkeypatch):
  book = nbformat.read(NOTEBOOK, as_version=4)
  # Nothing listens there: a download fails at once.
  proxies = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
  nowhere = dict.fromkeys(proxies, "http://127.0.0.1:9")
  kernel = environment(
    1, PIP_NO_INDEX="1", IPYTHONDIR=str(tmp_path / ".ipython"), **nowhere
  )
  options = {"timeout": 600, "startup_timeout": 600, "kernel_name": "python3"}
  where = {"metadata": {"path": str(tmp_path)}}
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / ".jupyter"))
  try:
    nbclient.NotebookClient(book, resources=where, **options).execute(env=kernel)
  finally:
    nbformat.write(book, tmp_path / "executed.ipynb")  # to look at
  runs = tmp_path / "runs"
  # A failed command does not stop a notebook; its message would be in the outputs.
  outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
  text = "".join(output.text for output in outputs if output.output_type == "stream")
  assert "Traceback" not in text and "error: " not in text
  assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
  # Each training leaves a prompt of the CLIP's width; the second starts from the first
  # one's.
  clip, contexts = load_clip("world"), {}
  for name in ("demo", "own"):
    config = json.loads((runs / name / "config.json").read_text())
    contexts[name] = load_prompt(runs / name).context
    assert contexts[name].shape == (
      config["prompt"]["m"],
      clip.config.text_config.hidden_size,
    )
  assert os.path.samefile(
    tmp_path / config["prompt"]["init"], runs / "demo" / "prompt.npz"
  )
  assert not np.array_equal(contexts["demo"], contexts["own"])
  # The exported vectors are the class features of that prompt.
  vectors_ExN = np.load(runs / "vectors" / "zero_shot_weights.npy")
  names = (runs / "names.txt").read_text().splitlines()
  expected_NxE = Encoder(clip).class_features(names, load_prompt(runs / "own"))
  np.testing.assert_allclose(vectors_ExN, expected_NxE.T, atol=1e-5)
