"""docs/pomp.ipynb, executed once in an empty folder, without the network; its files are checked."""

import json
import os
import pathlib

import nbclient
import nbformat
import numpy as np
import pytest

from pomp_jax.clip import load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import load_prompt
from tests.support.processes import environment

# Nothing listens there: a download fails at once.
NOWHERE = "http://127.0.0.1:9"
NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs" / "pomp.ipynb"
# Appended by the test: arrays of the notebook's last cells, as files.
_DUMP = """
np.savez("arrays.npz", probabilities=probabilities, picture=classifier.probabilities(picture))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  """The notebook with its outputs, and the folder that it ran in."""
  folder = tmp_path_factory.mktemp("notebook")
  book = nbformat.read(NOTEBOOK, as_version=4)
  book.cells.append(nbformat.v4.new_code_cell(_DUMP))
  nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
  kernel = environment(1, PIP_NO_INDEX="1", IPYTHONDIR=str(folder / ".ipython"), **nowhere)
  client = nbclient.NotebookClient(
    book,
    timeout=600,
    startup_timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / ".jupyter"))
    try:
      client.execute(env=kernel)
    finally:
      nbformat.write(book, folder / "executed.ipynb")  # to look at
  return book, folder


def test_the_stored_notebook_has_no_outputs():
  book = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(book)
  code = [cell for cell in book.cells if cell.cell_type == "code"]
  assert code and all((cell.outputs, cell.execution_count) == ([], None) for cell in code)
  # Nothing of a machine or an editor: Colab's and Jupyter's own metadata change with each save.
  assert book.metadata.keys() == {"kernelspec", "language_info"}
  assert not any(cell.metadata for cell in book.cells)


def test_no_command_fails_and_pictures_are_drawn(executed):
  """A failed command does not stop a notebook; its message would be in the outputs."""
  outputs = [output for cell in executed[0].cells for output in cell.get("outputs", [])]
  text = "".join(output.text for output in outputs if output.output_type == "stream")
  assert "Traceback" not in text and "error: " not in text
  drawn = [output for output in outputs if "image/png" in output.get("data", {})]
  assert len(drawn) >= 2


@pytest.mark.parametrize("name", ["demo", "own"])
def test_a_training_leaves_a_prompt_of_the_clips_width(executed, name):
  run = executed[1] / "runs" / name
  config = json.loads((run / "config.json").read_text())
  with np.load(run / "prompt.npz", allow_pickle=False) as stored:
    context_MxD = stored["context"]
  width = load_clip("world").config.text_config.hidden_size
  assert context_MxD.shape == (config["prompt"]["m"], width)
  assert np.isfinite(context_MxD).all()
  results = json.loads((run / "results.json").read_text())
  steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert max(steps) == results["steps"] == config["steps"]


def test_the_second_training_starts_from_the_first_ones_prompt(executed):
  runs = executed[1] / "runs"
  config = json.loads((runs / "own" / "config.json").read_text())
  assert os.path.samefile(executed[1] / config["prompt"]["init"], runs / "demo" / "prompt.npz")
  contexts = [np.load(runs / name / "prompt.npz")["context"] for name in ("demo", "own")]
  assert not np.array_equal(*contexts)


def test_probabilities_sum_to_1(executed):
  arrays = np.load(executed[1] / "arrays.npz")
  files = list((executed[1] / "runs" / "example_sets" / "shifted").rglob("*.png"))
  names = {file.parent.name for file in files}
  assert arrays["probabilities"].shape == (len(files), len(names))
  assert arrays["picture"].ndim == 1 and len(arrays["picture"]) > 1
  for probabilities in arrays.values():
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_the_exported_vectors_are_the_prompts_class_features(executed):
  runs = executed[1] / "runs"
  vectors_ExN = np.load(runs / "vectors" / "zero_shot_weights.npy")
  names = (runs / "names.txt").read_text().splitlines()
  prompt = load_prompt(runs / "own" / "prompt.npz")
  expected_NxE = Encoder(load_clip("world")).class_features(names, prompt)
  np.testing.assert_allclose(vectors_ExN, expected_NxE.T, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(vectors_ExN, axis=0), 1, atol=1e-5)
