"""The job analyse leaves out files that can't be read, and counts them."""

from pomp_jax.rooms.analysis import analyse
from tests.train.test_unreadable import config_of, images  # noqa: F401


def test_analyse(config_of, images, tmp_path):  # noqa: F811
  settings = {"evaluate.suite": "base_to_new", "evaluate.source": "folder"}
  settings |= {"evaluate.root": str(images.parent), "evaluate.sets": "eurosat"}
  config = config_of(images, job="analyse", **settings, **{"analyse.prompts": "{}."})
  sets = analyse.run(config, str(tmp_path))["sets"].values()
  assert [(found["images"], found["unreadable"]) for found in sets] == [
    (24, 1),
    (24, 1),
  ]
