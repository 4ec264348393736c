"""Damage to stored files of `segment` and `propose`, as tests/faults/test_damage.py
does it."""

import numpy as np
import pytest

from pomp_jax.files.pieces import Pieces
from pomp_jax.rooms.regions import proposals, propose, segment
from pomp_jax.rooms.regions.region_folder import Regions
from tests.faults.test_damage import tiers, trials  # noqa: F401
from tests.rooms.regions.region_jobs import SIZES, WIDTH, regions_config
from tests.support.small_run import run_job


@pytest.fixture
def interrupted(region_set, monkeypatch, without_report):
  """A function: module of a job, config, its patched network -> a start that is
  killed or not."""

  def prepare(module, config, workdir):
    monkeypatch.setattr(module, "_BLOCK", 2)
    monkeypatch.setattr(module, "_SHOWN", 2, raising=False)
    save, saved = Pieces.save, []

    def killed(pieces, name, *given):
      if pieces.folder.name == "progress":
        saved.append(name)
      if len(saved) == 3:
        raise KeyboardInterrupt
      return save(pieces, name, *given)

    with monkeypatch.context() as patch:
      patch.setattr(Pieces, "save", killed)
      with pytest.raises(KeyboardInterrupt):
        run_job(config, workdir)

  return prepare


@pytest.mark.parametrize("n_trials", tiers(8, 120))
def test_label_images_of_segment(region_set, tmp_path, trials, interrupted, n_trials):  # noqa: F811
  config = regions_config(region_set, "segment")

  def start(folder):
    results = run_job(config, folder)
    labels = sorted(folder.glob("labels/*/*.png"))
    return results, {
      str(path.relative_to(folder)): path.read_bytes() for path in labels
    }

  interrupted(segment, config, tmp_path / "work")
  trials("segment", tmp_path / "work", start, ("labels/*/*", "progress/*"), n_trials)


@pytest.mark.parametrize("n_trials", tiers(8, 120))
def test_regions_of_propose(
  region_set,
  tmp_path,
  trials,  # noqa: F811
  interrupted,
  monkeypatch,
  n_trials,
):
  """With regions that are drawn, in place of the network's."""
  fields = {
    "propose.prompt": "network",
    "regions.mask_threshold": 0.4,
    "propose.size": 48,
  }
  config = regions_config(
    region_set, "propose", **fields, **{"propose.images": "detect"}
  )

  def regions(proposer, images):
    del proposer
    for image in images:
      rng = np.random.default_rng(int(image.sum()))
      boxes = np.tile(np.array([0, 0, *image.shape[1::-1]], np.float32), (3, 1))
      masks = rng.integers(0, 256, (3, 8, 8), np.uint8)
      embeddings = rng.normal(size=(3, 1, WIDTH)).astype(np.float16)
      yield Regions(boxes, None, masks, embeddings)

  def start(folder):
    results = run_job(config, folder)
    files = sorted(folder.glob("regions/*"))
    assert len(files) == len(SIZES) + 1
    return results, {path.name: path.read_bytes() for path in files}

  monkeypatch.setattr(proposals.Proposer, "regions", regions)
  interrupted(propose, config, tmp_path / "work")
  trials("propose", tmp_path / "work", start, ("regions/*", "progress/*"), n_trials)
