"""Whatever the job, the folder of another one's run is left alone."""

import pytest

from pomp_jax.config import JOBS, load_job
from pomp_jax.files.run_folder import RunFolderError, write_json
from tests.support.small_run import small_config

SETTINGS = {
  "ablate.grid": "seed=0|1",
  "baselines.methods": "a:k=5",
  "prepare.dataset": "imagenet21k",
}


@pytest.mark.parametrize("name", sorted(JOBS))
@pytest.mark.parametrize("file", ["config.json", "results.json"])
def test_another_jobs_folder_is_refused(tmp_path, name, file):
  write_json(tmp_path / file, {"job": "another", "seed": 0})
  config = small_config(job=name, **SETTINGS)
  with pytest.raises(RunFolderError, match=f"{file} is of job='another'"):
    load_job(name).check(config, str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == [file]
