"""A run's folder of an earlier version, whose fields had other names, is resumed."""

import json

import pytest

from pomp_jax.config import ConfigError, Settings
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train.resume import check_same_run, may_change


def _folder(path, **changes):
  """A folder with the config of before: old names, and a bank that was made anew."""
  stored = Settings().to_dict() | changes
  clip, sampling = dict(stored["clip"]), dict(stored["sampling"])
  clip["keep"], clip["images_at_a_time"] = "activations", clip.pop("image_chunk")
  del clip["remat"], sampling["renew"], sampling["bank_dtype"]
  sampling["refresh_every"] = 50
  (path / "config.json").write_text(json.dumps(stored | {"clip": clip, "sampling": sampling}))
  return RunFolder(path)


def test_a_run_of_before_is_the_same_run(tmp_path):
  """Even one from before a job, whose fields do not matter to other jobs."""
  config, folder = Settings().replace({"clip.remat": "none"}), _folder(tmp_path)
  check_same_run(config, folder, may_change)
  stored = json.loads(folder.config.read_text())
  for job in ("train_masks", "propose", "regions"):
    del stored[job]
  folder.config.write_text(json.dumps(stored))
  check_same_run(config, folder, may_change)
  # A field that a stored config lacks is another value.
  del stored["data"]["test_share"]
  folder.config.write_text(json.dumps(stored))
  with pytest.raises(ConfigError, match=r"data\.test_share"):
    check_same_run(config, folder, may_change)


def test_another_value_under_an_old_name_is_another_run(tmp_path):
  config = Settings().replace({"clip.remat": "layers"})
  with pytest.raises(ConfigError, match=r"clip\.remat"):
    check_same_run(config, _folder(tmp_path), may_change)
