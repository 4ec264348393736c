"""Stored features of training images, for baselines."""

import numpy as np
import pytest

from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.baselines import baselines, classifiers, tip_adapter
from pomp_jax.train import pretrain
from tests.support.small_run import small_config
from tests.train.test_stored_features import N_IMAGES, PLAIN, STORED, config_of, shown  # noqa: F401


def test_a_classifier_reads_stored_features(config_of, shown, tmp_path, monkeypatch):  # noqa: F811
  keys, encoder = {}, opening.open_encoder(config_of().clip)

  def run(config, folder, fit):
    given = config.data, config.clip, config.eval.images, encoder, folder
    return classifiers.fitted_by(fit, *given)._asdict()

  monkeypatch.setattr(classifiers, "run", run)
  for features in ("online", "stored", "stored"):
    shown.clear()
    config = config_of(method="tip_adapter", **PLAIN | {"data.features": features})
    expected = 0 if "stored" in keys else N_IMAGES
    keys[features] = tip_adapter.run(config, RunFolder(tmp_path))["classifier"].keys
    assert sum(shown) == expected
  np.testing.assert_allclose(keys["stored"], keys["online"], rtol=0, atol=1e-6)


def test_a_method_that_trains_on_pixels_has_no_other_choice(config_of):  # noqa: F811
  both = {"baselines.methods": "prompt: k=3; visual: method=vpt_shallow"}
  config = config_of(job="baselines", **PLAIN | STORED | both)
  found = baselines.method_runs(config.baselines.methods, config.replace, "runs")
  assert [runs[0][0].data.features for runs in found.values()] == ["stored", "online"]


@pytest.mark.usefixtures("few_texts")
def test_another_run_of_the_same_images_reads_their_features(
  pretrained, copy_of, monkeypatch
):
  monkeypatch.setattr(Encoder, "features_of_images", None)
  store = copy_of(pretrained / "features")
  config = small_config(method="zero_shot", **{"data.feature_store": str(store)})
  found = pretrain.run(config, str(store.parent / "run"))["eval"]
  assert not (store.parent / "run" / "features").exists()
  expected = RunFolder(pretrained).read_results()["eval"]
  for split, figures in found.items():
    assert figures["class_name"]["top1"] == expected[split]["class_name"]["top1"]
