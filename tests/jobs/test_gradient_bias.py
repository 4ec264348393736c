"""The job of the gradient's bias on a small world: its figures, its plot, its refusals."""

import json

from matplotlib.image import imread
import pytest
from small_run import small_config

from pomp_jax.config import ConfigError
from pomp_jax.jobs import gradient_bias


def _config(**changes):
  settings = {
    "job": "gradient_bias",
    "gradient_bias.k": (8, 250, 300),
    "gradient_bias.images": 12,
    "gradient_bias.rows": 1200,
    "gradient_bias.samplers": "uniform;hard",
    "gradient_bias.corrections": "log;none",
  }
  return small_config(**(settings | changes))


def test_it_leaves_figures_and_a_plot(tmp_path):
  config = _config()
  gradient_bias.check(config, str(tmp_path))
  gradient_bias.run(config, str(tmp_path))
  results = json.loads((tmp_path / "results.json").read_text())
  assert (results["n_classes"], results["images"], results["prompt"]) == (300, 12, "initial")
  cells = {(cell["sampler"], cell["correction"], cell["k"]): cell for cell in results["cells"]}
  assert len(cells) == 2 * 2 * 3
  for sampler in ("uniform", "hard"):
    # All classes: no draw, no bias.
    assert cells[sampler, "log", 300]["relative_deviation"] < 1e-5
    assert cells[sampler, "log", 300]["relative_bias"] < 1e-4
    assert cells[sampler, "log", 250]["bias_high"] < cells[sampler, "log", 8]["bias_low"]
  assert imread(tmp_path / "plots" / "gradient_bias.png").std() > 0.05


@pytest.mark.parametrize(
  ("field", "value", "takes"),
  [
    ("k", (1, 8), "from 2 to the number of classes, 300"),
    ("k", ("x",), "from 2 to the number of classes, 300"),
    ("k", (16, 16), "different sizes"),
    ("k", (), "from 2 to the number of classes, 300"),
    ("samplers", "uniform;harder", "some of uniform, hard"),
    ("samplers", "uniform;uniform", "none twice"),
    ("corrections", "ln", "some of log, log10"),
  ],
)
def test_bad_input_is_one_line(tmp_path, field, value, takes):
  config = _config(**{f"gradient_bias.{field}": value})
  with pytest.raises(ConfigError, match=rf"config\.gradient_bias\.{field}: .*{takes}"):
    gradient_bias.check(config, str(tmp_path))
