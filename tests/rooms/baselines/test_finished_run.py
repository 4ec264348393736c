"""Finished runs of methods that learn no prompt, as classifiers of other jobs."""

import numpy as np
import pytest

from pomp_jax import world
from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate import Classifier, opening
from pomp_jax.evaluate.named_prompts import read_prompt
from pomp_jax.files.checkpoints import Restored
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.baselines.finished_run import FinishedRun
from tests.support.data_files import write_world
from tests.support.small_run import run_job, small_config

# Large steps, so that what is learned answers otherwise than the words.
SMALL = {"k": 4, "prompt.m": 2, "batch_size": 8, "steps": 2, "checkpoint.every": 2}
SMALL |= {"optim.lr": 2.0}
METHODS = {
  "cocoop": {},
  "vpt_shallow": {"prompt.visual_tokens": 3},
  "maple": {"prompt.init": "a photo of a", "prompt.depth": 1},
  "ivlp": {"prompt.init": "a photo", "prompt.depth": 1, "optim.average": "ema"},
  "protext": {"prompt.depth": 1, "prompt.init": "a photo"},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  root = tmp_path_factory.mktemp("pictures")
  names = world.source("base").names[::2500]
  for split, of_world in (("train", "base"), ("test", "shifted")):
    write_world(root / split, of_world, 4, names)
  return root


_OTHERS = pytest.mark.slow("a training each")


@pytest.mark.parametrize(
  "method",
  [
    *("vpt_shallow", "protext"),
    *(pytest.param(name, marks=_OTHERS) for name in ("cocoop", "maple", "ivlp")),
  ],
)
def test_it_answers_as_the_run_did(method, pictures, one_layer, tmp_path):
  """Accuracy of `evaluate` on the run's own test images, and of `Classifier` on the
  files."""
  data = {"data.source": "folder", "data.root": str(pictures), "data.n_classes": 0}
  clip = {"clip.model": str(one_layer)}
  run = tmp_path / "run"
  trained = run_job(
    small_config(
      **SMALL | data | clip | METHODS[method], method=method, **{"eval.images": 0}
    ),
    run,
  )
  own = ({"name": "pictures", "root": str(pictures)},)
  prompts = {
    "evaluate.prompts": (str(run), "a photo of a {}."),
    "evaluate.own_sets": own,
  }
  config = small_config(job="evaluate", **clip | prompts, **{"evaluate.suite": "none"})
  found = run_job(config, tmp_path / "evaluation")["sets"]["pictures"]["prompts"]
  expected = trained["eval"]["test"]
  for label, name in (("run", "prompt"), ("a photo of a {}.", "hand_written")):
    for figure in ("images", "top1", "top1_interval", "top5", "macro_top1"):
      assert found[label][figure] == pytest.approx(expected[name][figure])
  assert found["run"]["ece"] != pytest.approx(found["a photo of a {}."]["ece"])
  files = sorted((pictures / "test").glob("*/*.png"))
  classifier = Classifier(str(one_layer), str(run))  # the run knows its names
  answers = [best for ((best, _),) in classifier.predict(files, top=1)]
  right = np.mean(
    [answer == file.parent.name for answer, file in zip(answers, files, strict=True)]
  )
  assert right == pytest.approx(expected["prompt"]["top1"])


@pytest.fixture
def run_of(tmp_path):
  """A function: config of a method, results -> folder of a run that has those."""

  def write(results):
    folder = RunFolder(tmp_path / "other")
    folder.create({})
    folder.write_results(results)
    return str(folder.path)

  return write


def test_what_is_no_classifier_of_any_names_is_one_line(run_of):
  probe = run_of({"method": "linear_probe"})
  with pytest.raises(
    ConfigError, match="evaluate.prompts: got .* a run that learns by steps; lin"
  ):
    read_prompt(probe, "evaluate.prompts")


def test_a_method_that_sees_pixels_says_so(pictures, one_layer, tmp_path):
  """Without class vectors, on stored features, with another CLIP."""
  state = {"params": {"visual": np.ones((1, 3, 64), np.float32)}}
  config = small_config(method="vpt_shallow").to_dict()
  finished = FinishedRun(
    Restored(2, state, {"config": config}, None), "runs/vpt/checkpoints/2"
  )
  assert finished.needs_pixels
  clip = opening.clip_config(one_layer)
  with pytest.raises(
    InputError, match="learned with the CLIP 'world'; got config.clip.model="
  ):
    finished.check("vpt", [("a",)], clip, one_layer)
  with pytest.raises(
    InputError, match="runs/vpt/checkpoints/2: the method vpt_shallow has no "
  ):
    finished.features(
      Encoder(load_clip(one_layer)), ClassList(("red star", "teal leaf"))
    )
