"""Every job tells how far it is: with no time between two lines, each of its loops has some."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.config import load_job
from pomp_jax.files import terminal
from pomp_jax.train import methods
from tests.support.small_run import small_config

SMALL = {"data.n_classes": 30, "k": 10, "batch_size": 8, "steps": 2, "checkpoint.every": 2}
SMALL |= {
  "eval.images": 40,
  "epochs": 1,
  "probe.iterations": 5,
  "tip.beta_steps": 3,
  "tip.alpha_steps": 3,
}
# By name: the changes to the config, and what the lines begin with.
JOBS = {
  "pretrain": (
    {},
    {"loading world", "step ", "features of images", "class features", "scoring"},
  ),
  "evaluate": ({"evaluate.sets": "novel"}, {"loading world", "evaluation", "scoring images"}),
  "analyse": ({"evaluate.sets": "novel"}, {"analysis", "features of images", "class features"}),
  "gradient_bias": (
    {
      "gradient_bias.k": (8,),
      "gradient_bias.images": 4,
      "gradient_bias.rows": 100,
      "gradient_bias.samplers": "uniform",
      "gradient_bias.corrections": "log",
    },
    {"gradient bias", "gradients"},
  ),
  "ablate": (
    {"ablate.grid": "seed=0|1"},
    {"ablation", "compiling the cells' step", "2 cells", "features of training images", "scoring"},
  ),
  "segment": (
    {"segment.n_images": 2, "regions.source": "truth", "regions.crop": "context"},
    {"segmentation", "class features"},
  ),
  "predict": ({"predict.prompt": "a {}."}, {"predicting", "image features", "class features"}),
}
METHODS = {
  "linear_probe": {"fitting linear probes", "features of images", "class features", "scoring"},
  "tip_adapter_f": {"features of the training's views", "search of alpha and beta"},
}


@pytest.fixture(autouse=True)
def talkative(monkeypatch):
  """No time between two lines, silence is looked for at once; fewer texts for a zero-shot CLIP."""
  monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
  monkeypatch.setattr(terminal, "_start_thread", lambda: terminal._open[-1].tick())
  texts = {name: methods._ZERO_SHOT[name] for name in ("hand_written", "class_name")}
  monkeypatch.setattr(methods, "_ZERO_SHOT", texts)


def lines_of(config, tmp_path, capsys):
  module = load_job(config.job)
  module.check(config, str(tmp_path / "run"))
  module.run(config, str(tmp_path / "run"))
  assert not terminal._open
  return capsys.readouterr().err.splitlines()


def begun(lines, descriptions):
  return {text for text in descriptions if any(line.startswith(text) for line in lines)}


@pytest.mark.parametrize("name", JOBS)
def test_a_job(name, tmp_path, capsys):
  changes, descriptions = JOBS[name]
  if name == "predict":
    (tmp_path / "images").mkdir()
    pixels = world.source("novel", n_images=1).images(np.arange(1))[0]
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    changes = changes | {
      "predict.images": str(tmp_path / "images"),
      "predict.names": str(tmp_path / "names.txt"),
    }
  lines = lines_of(small_config(job=name, **SMALL | changes), tmp_path, capsys)
  assert begun(lines, descriptions) == descriptions


@pytest.mark.parametrize("method", METHODS)
def test_a_method(method, tmp_path, capsys):
  lines = lines_of(small_config(method=method, **SMALL), tmp_path, capsys)
  assert begun(lines, METHODS[method]) == METHODS[method]
