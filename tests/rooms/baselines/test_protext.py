"""ProText from a JSON of sentences to its 26th step, against torch on HuggingFace's
CLIPModel."""

import contextlib
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import optax
import pytest
import torch
from torch.nn import functional
from transformers import CLIPTextConfig

from docs.scripts import dump_sentences
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import ConfigError, unpack
from pomp_jax.config.fields import Prompt
from pomp_jax.configs import protext
from pomp_jax.evaluate.opening import open_source
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.baselines.fields import Tokens
from pomp_jax.train import batches, resume, setup
from pomp_jax.train.methods import method_of
from tests.rooms.baselines.test_learners import to_torch, torch_class_features
from tests.support.checks import assert_close
from tests.support.clips import pooled
from tests.support.small_run import run_job
from tests.support.torch_world import NAMES, write_world

SENTENCES = {name: [f"the {name} of the sea", f"a red {name}"] for name in NAMES[:4]}
EPOCHS = 13


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """The CLIP, and beside it the sentences as features; the names are the file's."""
  folder = tmp_path_factory.mktemp("world")
  world = write_world(folder, NAMES[:4], positions=40)
  (folder / "cupl.json").write_text(json.dumps(SENTENCES))
  given = ["--clip", str(folder), "--sentences", f"{folder}/cupl.json"]
  dump_sentences.main([*given, "--out", f"{folder}/features"])
  with pytest.raises(SystemExit, match="has training rows already"):
    dump_sentences.main([*given, "--out", f"{folder}/features"])
  with pytest.raises(SystemExit, match="1000 of 1000 classes have no sentences"):
    dump_sentences.main([*given, "--out", f"{folder}/none", "--names", "imagenet1k"])
  return world


def config_of(world, variant=""):
  config = unpack(protext.get_config(f"root={world.clip.name}/features{variant}"))
  small = {"clip.model": world.clip.name, "batch_size": 4, "epochs": EPOCHS}
  return config.replace(small | {"prompt.init": "the star of a"})


def test_from_base_to_new_only_the_base_classes_have_sentences(world):
  config = config_of(world).replace({"data.classes": "base"})
  source = open_source(config.data, "train")
  assert source.names == NAMES[:2] and set(source.labels) == {0, 1}
  assert len(source) == sum(len(SENTENCES[name]) for name in NAMES[:2])


def test_a_row_is_a_sentence(world):
  source, model = open_source(config_of(world).data, "train"), world.model.float()
  assert source.names == NAMES[:4]
  for i, key in enumerate(source.keys):
    sentence = key.partition(" ")[2]
    assert sentence in SENTENCES[source.names[source.labels[i]]]
    with torch.no_grad():
      tokens = world.clip.tokenizer([sentence], return_tensors="pt")
      assert_close(
        source.features(np.array([i])), pooled(model.get_text_features(**tokens))
      )
  world.model.double()


def test_steps_of_all_epochs_equal_torch(world, tmp_path):
  """`forward_backward` of trainers/protext.py in muzairkhattak/ProText f63d96b, with
  its yaml."""
  run = setup.prepare(
    config_of(world).replace({"prompt.depth": 3}), RunFolder(tmp_path)
  )
  step, state = run.build_step(), resume.first_state(run)
  params = {
    name: leaf.requires_grad_() for name, leaf in to_torch(state.params).items()
  }
  assert params["deep"].shape[0] == 2
  optimizer = torch.optim.AdamW(params.values(), betas=(0.9, 0.98), weight_decay=0.1)
  tiny = SimpleNamespace(world=world)
  with contextlib.closing(run.open_batches()) as loader:
    for i, batch in enumerate(itertools.islice(loader, 2 * EPOCHS)):
      classes = torch_class_features(tiny, params["context"], deep=params["deep"])
      classes = functional.normalize(classes[batch["label"]])
      targets = functional.normalize(torch.tensor(batch["image"]).double())
      loss = functional.mse_loss(classes, targets)
      optimizer.zero_grad()
      (1000 * loss).backward()
      # Dassl's cosine behind five constant epochs.
      cosine = 0.03 * (1 + math.cos(math.pi * (i // 2 - 5) / EPOCHS)) / 2
      optimizer.param_groups[0]["lr"] = 1e-5 if i < 10 else cosine
      optimizer.step()
      (on_devices,) = batches.on_devices(iter([batch]), run.encoder.mesh)
      state, metrics = step(state, run.frozen, on_devices)
      assert_close(metrics["loss"], loss.item())
      means = optax.tree.get(state.opt_state, "mu")
      for name, leaf in params.items():
        assert_close(1000 * means[name], optimizer.state[leaf]["exp_avg"])
        assert_close(state.params[name], leaf.detach())


def test_a_prompt_in_the_first_layer_is_a_file(world, tmp_path):
  with pytest.raises(ConfigError, match="prompt.depth: got 9, expected at most 3"):
    run_job(config_of(world), tmp_path)
  both_ways = ClipConfig(CLIPTextConfig(bidirectional=True), None, 8)
  with pytest.raises(
    ConfigError, match="prompt.depth: got 2, expected 1 for a CLIP whose text"
  ):
    method_of("protext").check(Prompt().having(Tokens(depth=2)), both_ways)
  run_job(config_of(world, ",shallow").replace({"steps": 2}), tmp_path)
  assert load_prompt(tmp_path / "prompt.npz").context.shape[0] == 4
