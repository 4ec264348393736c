"""`segment` and `detect` in two processes find what one does."""

from pomp_jax.files.run_folder import RunFolder
from tests.support.processes import run_in_processes
from tests.support.region_jobs import (
  assert_same_detections,
  detections,
  regions_config,
  run_job,
)

PATCHES = {"regions.source": "none", "segment.size": 48, "segment.window": 32, "segment.stride": 16}
NETWORK = {
  "regions.source": "network",
  "regions.mask_threshold": 0.4,
  "propose.size": 48,
  "propose.batch_size": 4,
}


def test_two_processes_find_what_one_does(region_set, tmp_path):
  """Over 20 core-seconds: two processes start, once for all kinds of regions."""
  configs = {
    "truth": regions_config(region_set, "segment"),
    "patches": regions_config(region_set, "segment", **PATCHES),
    "network": regions_config(region_set, "segment", **NETWORK | {"segment.output": False}),
    "objects": regions_config(region_set, "detect"),
  }
  folders = {kind: [tmp_path / f"{kind}{process}" for process in (0, 1)] for kind in configs}
  run_in_processes(
    [(config, folders[kind]) for kind, config in configs.items()], tmp_path / "jobs.json"
  )
  for kind, config in configs.items():
    first, second = folders[kind]
    found, expected = RunFolder(first).read_results(), run_job(config, tmp_path / kind)
    assert not second.exists()
    if config.job == "segment":
      assert found == expected
      continue
    for label, figures in expected["figures"].items():
      assert found["figures"][label]["top1"] == figures["top1"]
    assert_same_detections(detections(first), detections(tmp_path / kind))
