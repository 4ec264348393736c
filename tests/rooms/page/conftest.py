"""The application on the embedded world, with a random prompt and a run that has a
report."""

import dataclasses

import numpy as np
import pytest

from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.rooms.page import page as job
from pomp_jax.rooms.page import server
from pomp_jax.rooms.page.comparison import Comparison, shown_prompts
from pomp_jax.rooms.regions.on_page import RegionsOfPictures
from tests.rooms.page.test_runs import write_run
from tests.support.small_run import settings

MAX_NAMES = 20


@pytest.fixture(scope="session")
def made(tmp_path_factory):
  """Application, comparison, the folder around its runs, and the config."""
  folder = tmp_path_factory.mktemp("page")
  rng = np.random.default_rng(0)
  save_prompt(
    folder / "prompt.npz", Prompt(rng.normal(0, 0.5, (2, 64)).astype("f"), "world")
  )
  write_run(folder / "runs" / "demo <b>")
  for width, name in ((64, "demo <b>"), (48, "wide")):
    (folder / "runs" / name).mkdir(exist_ok=True)
    context = rng.normal(0, 0.5, (2, width)).astype("f")
    save_prompt(folder / "runs" / name / "prompt.npz", Prompt(context, "world"))
  (folder / "runs" / "wide" / "config.json").write_text('{"job": "pretrain"}')
  (folder / "secret.txt").write_text("a secret")
  (folder / "runs" / "demo <b>" / "report.html").write_text("<script>steal()</script>")
  config = settings(
    job="page",
    **{"page.prompts": f"{folder}/prompt.npz;a photo of a {{}}.;{{}}.", "page.top": 2},
    **{
      "regions.crop": "context",
      "segment.size": 0,
      "segment.window": 40,
      "segment.stride": 20,
    },
  )
  prompts = read_prompts(config.page.prompts, "page.prompts")
  encoder = opening.open_encoder(config.clip)
  regions = RegionsOfPictures(encoder, config.clip, config.page)
  comparison = Comparison(
    encoder, shown_prompts(prompts), config.page.top, regions, {f"{folder}/prompt.npz"}
  )
  page = dataclasses.replace(
    config.page, runs=str(folder / "runs"), max_names=MAX_NAMES, max_upload=1.0
  )
  app = server.make_app(comparison, page, server.Turns(), {"regions": job._scenes()})
  return app, comparison, folder, config
