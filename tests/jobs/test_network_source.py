"""Regions of a network while the job runs: what its folder of `propose` gives, to the bit."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from pomp_jax import inputs
from pomp_jax.config import validate
from pomp_jax.errors import InputError
from pomp_jax.jobs import detect, propose, segment
from pomp_jax.masks.weights import MaskFormerFile, write_mask_former
from tests.support.clips import write_random_clip
from tests.support.mask_params import TINY, random_params
from tests.support.mask_sets import write_objects
from tests.support.pixel_sets import SIZES, segment_config, write_pixel_set
from tests.support.processes import run_in_processes

NETWORK = dataclasses.replace(TINY, embedding=24)
CONTEXT = np.random.default_rng(5).normal(size=(4, 32)).astype(np.float32)


def write_network(path, seed=0, config=NETWORK, context=CONTEXT, classes=("the cat", "sky")):
  with open(path, "wb") as file:
    write_mask_former(file, MaskFormerFile(config, random_params(config, seed), classes), context)
  return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("network")
  write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  write_objects(root)
  write_network(root / "net.pth")
  return root


@pytest.fixture(scope="module", autouse=True)
def one_encoder_for_all():
  """CLIPs are opened and compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    opened, encoders = inputs.open_encoder, {}

    def open_once(config):
      if config.clip not in encoders:
        encoders[config.clip] = opened(config)
      return encoders[config.clip]

    patch.setattr(inputs, "open_encoder", open_once)
    yield


def config_of(root, **changes):
  settings = {
    "segment.prompts": ("network", "{}!"),
    "detect.source": "coco",
    "detect.annotations": str(root / "objects.json"),
    "detect.images": str(root / "images"),
    "detect.names": str(root / "names.txt"),
    "detect.prompts": ("network", "{}!"),
    "detect.min_score": 0.1,
    "detect.output": True,
    "propose.network": str(root / "net.pth"),
    "propose.prompt": "network",
    "propose.size": 48,
    "propose.stride": 1,
    "propose.batch_size": 1,
    "regions.source": "network",
    "regions.size": 48,
    "regions.mask_threshold": 0.4,
    "regions.objectness": True,
  }
  return segment_config(root, **settings | changes)


def run(job, config, workdir):
  validate(config)
  job.check(config, str(workdir))
  return job.run(config, str(workdir))


def outputs(workdir):
  """Bytes of all label images and detections."""
  files = [*workdir.rglob("labels/*/*.png"), *workdir.rglob("detections/*.json")]
  return {file.relative_to(workdir): file.read_bytes() for file in files}


@pytest.mark.parametrize("job", [segment, detect])
def test_equal_to_the_folder_that_propose_writes(root, tmp_path, job):
  name = job.__name__.rpartition(".")[2]
  run(propose, config_of(root, **{"job": "propose", "propose.images": name}), tmp_path / "found")
  stored = {"regions.source": "file", "regions.path": str(tmp_path / "found" / "regions")}
  # Fewer than the network finds, by their objectness.
  most = {"job": name, "regions.max_regions": 4}
  expected = run(job, config_of(root, **most | stored), tmp_path / "file")
  found = run(job, config_of(root, **most), tmp_path / "network")
  assert found["figures"] == expected["figures"]
  assert len(outputs(tmp_path / "network")) == (2 * len(SIZES) if job is segment else 2)
  assert outputs(tmp_path / "network") == outputs(tmp_path / "file")
  labels = [prompt["label"] for prompt in found["prompts"]]
  assert labels == [str(root / "net.pth"), "{}!"]


def test_another_file_or_size_is_another_run(root, tmp_path):
  """A network that changes in its place, and a field of `propose`."""
  shutil.copy(root / "net.pth", tmp_path / "net.pth")
  changes = {"propose.network": str(tmp_path / "net.pth"), "detect.n_images": 1, "job": "detect"}

  def found(**more):
    run(detect, config_of(root, **changes | more), tmp_path / "run")
    return outputs(tmp_path / "run")

  first = found()
  assert found() == first
  write_network(tmp_path / "net.pth", seed=1)
  other = found()
  assert first != other != found(**{"propose.stride": 4})


def test_what_can_not_work_is_one_line_and_nothing_is_written(root, tmp_path):
  (tmp_path / "text").write_text("no network")
  write_network(tmp_path / "wide.pth", config=dataclasses.replace(TINY, embedding=32))
  write_network(tmp_path / "bare.pth", context=None)
  stored = torch.load(root / "net.pth", weights_only=True)
  stored["model"]["clip_adapter.clip_model.ln_final.weight"] = torch.ones(32)
  torch.save(stored, tmp_path / "other.pth")
  cases = [
    ({"propose.network": str(tmp_path / "none.pth")}, "propose.network"),
    ({"propose.network": ""}, "propose.network"),
    ({"propose.network": "", "regions.source": "truth"}, "propose.network"),
    ({"propose.network": str(tmp_path / "text")}, "text"),
    ({"propose.network": str(tmp_path / "wide.pth")}, "clip.model"),
    ({"propose.network": str(tmp_path / "other.pth")}, "clip_adapter.clip_model"),
    ({"propose.network": str(tmp_path / "bare.pth")}, "bare.pth"),
    ({"propose.prompt": str(tmp_path / "no.npz")}, "propose.prompt"),
    ({"regions.path": str(root / "regions")}, "regions.path"),
  ]
  for job in (segment, detect):
    own = {"job": job.__name__.rpartition(".")[2]}
    for changes, match in [*cases, ({"detect.images": ""}, "detect.images")]:
      if job is segment and "detect.images" in changes:
        continue
      with pytest.raises(InputError, match=match) as error:
        run(job, config_of(root, **own | changes), tmp_path / "run")
      assert "\n" not in str(error.value)
      assert not (tmp_path / "run").exists()


def test_two_processes_find_what_one_does(root, tmp_path):
  config = config_of(root, **{"segment.output": False, "propose.batch_size": 4})
  folders = [tmp_path / "first", tmp_path / "second"]
  run_in_processes([(config, folders)], tmp_path / "jobs.json")
  expected = run(segment, config, tmp_path / "alone")
  assert segment.RunFolder(folders[0]).read_results() == expected
  assert not folders[1].exists()
