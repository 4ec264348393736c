"""KDPL against the published loss in torch, on two random CLIPs of HuggingFace's;
its run."""

import contextlib
import itertools
import pathlib

import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import setup
from pomp_jax.train.resume import first_state
from tests.support.checks import assert_close
from tests.support.clips import words_as_prompt, write_random_clip
from tests.support.data_files import write_folder
from tests.support.small_run import run_job, small_config
from tests.support.torch_world import write_world

# of as many tokens: a draw has room for all
CLASSES = ("fig", "hen", "jug", "owl", "pen", "red")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Student and teacher over the classes of pictures, and a function: changes ->
  config."""
  root = tmp_path_factory.mktemp("kdpl")
  for seed, (split, count) in enumerate((("train", 5), ("val", 1), ("test", 2))):
    write_folder(root / "pictures" / split, CLASSES, count, seed=seed)
  student = write_world(root / "student", CLASSES, positions=16)
  model = write_random_clip(
    root / "teacher", positions=16, seed=4, vision={"hidden_size": 32}
  )
  # as DFN's
  (root / "teacher/preprocessor_config.json").write_text('{"resize_mode": "squash"}')
  model = model.double().requires_grad_(False)
  teacher = student._replace(clip=load_clip(str(root / "teacher")), model=model)
  fields = {"method": "kdpl", "kdpl.teacher": str(root / "teacher"), "negatives": "all"}
  fields |= {
    "clip.model": str(root / "student"),
    "prompt.m": 2,
    "batch_size": 8,
    "steps": 25,
  }
  fields |= {
    "data.source": "folder",
    "data.root": str(root / "pictures"),
    "data.n_classes": 0,
  }
  return student, teacher, lambda **changes: small_config(**fields | changes)


def published_loss(teacher_logits, student_logits, k):
  """miccunifi/KDPL 76da8da, kdpl_utils.sampling and CoOp_KDPL.forward_backward, and
  the labels."""
  chosen = teacher_logits.softmax(1).mean(0).topk(k).indices
  labels = teacher_logits.argmax(1)
  log_p, log_q = (
    rows[:, chosen].log_softmax(1) for rows in (teacher_logits, student_logits)
  )
  forward = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
  reverse = functional.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
  return 0.5 * forward + 0.5 * reverse, labels, chosen


@pytest.mark.parametrize(("k", "steps"), [(len(CLASSES), 8), (4, 5)])
def test_steps_equal_the_published_trainers(two, tmp_path, k, steps):
  """Loss, gradient and steps, over all classes, and over those of the largest mean."""
  student, teacher, config_of = two
  # Ours counts the teacher's class beside the draw.
  ours = (
    {}
    if k == len(CLASSES)
    else {"kdpl.classes": "likeliest", "negatives": "sampled", "k": k + 1}
  )
  run = setup.prepare(config_of(**ours), RunFolder(tmp_path))
  state, step = first_state(run), run.build_step()
  context = torch.tensor(
    np.asarray(state.params["context"], np.float64), requires_grad=True
  )
  optim = run.config["optim"]
  optimizer = torch.optim.SGD(
    [context], momentum=optim["momentum"], weight_decay=optim["weight_decay"]
  )
  words = words_as_prompt(teacher.clip, "a photo of a").context.astype(np.float64)
  classes = functional.normalize(teacher.class_features(torch.tensor(words)))
  start = context.detach().clone()
  with contextlib.closing(run.open_batches()) as loader:
    for number, batch in enumerate(itertools.islice(loader, steps)):
      images = functional.normalize(teacher.image_features(batch["image"]))
      teacher_logits = student.scale * images @ classes.T
      images = functional.normalize(student.image_features(batch["image"]))
      features = functional.normalize(student.class_features(context))
      student_logits = student.scale * images @ features.T
      loss, labels, chosen = published_loss(teacher_logits, student_logits, k)
      assert torch.isin(labels, chosen).all()
      optimizer.zero_grad()
      loss.backward()
      optimizer.param_groups[0]["lr"] = float(run.rate(number))
      optimizer.step()
      state, metrics = step(state, run.frozen, batch)
      assert_close(metrics["loss"], loss.item())
      assert_close(metrics["grad_norm"], context.grad.norm())
      right = student_logits[:, chosen].argmax(1) == teacher_logits[:, chosen].argmax(1)
      assert float(metrics["accuracy"]) == pytest.approx(right.double().mean().item())
  assert len(set(labels.tolist())) > 1 and (context - start).abs().max() > 1e-2
  assert_close(state.params["context"], context.detach())


def test_a_run_reads_no_label(two, tmp_path, monkeypatch):
  """Features of both that are stored, and other labels, learn the same prompt."""
  changes = {"sampling.name": "posterior", "negatives": "sampled", "k": 4, "steps": 6}
  found = {}
  for features in ("online", "stored"):
    config = two[2](**changes, **{"data.features": features, "eval.images": 0})
    found[features] = run_job(config, tmp_path / features)
    assert found[features]["method"] == "kdpl" and found[features]["steps"] == 6
    assert read_prompts([f"{tmp_path / features}/checkpoints"], "evaluate.prompts")
    monkeypatch.setattr(
      opening,
      "open_source",
      lambda data, split, open_source=opening.open_source, **more: (
        source := open_source(data, split, **more)
      ).replace(labels=source.labels[::-1] if split == "train" else source.labels),
    )
  contexts = [np.load(tmp_path / name / "prompt.npz")["context"] for name in found]
  assert_close(*contexts)


def test_the_activation_of_the_student_is_not_the_teachers(two, tmp_path, monkeypatch):
  """The teacher is another CLIP, which knows its own."""
  opened = []
  real = opening.open_encoder

  def recorded(clip, *others):
    opened.append((pathlib.Path(clip.model).name, clip.activation))
    if len(opened) == 2:
      raise InputError("enough")
    return real(clip, *others)

  monkeypatch.setattr(opening, "open_encoder", recorded)
  with pytest.raises(ConfigError, match="enough"):
    run_job(two[2](**{"clip.activation": "gelu"}), tmp_path)
  assert opened == [("student", "gelu"), ("teacher", "auto")]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kdpl.teacher": "world"}, r"kdpl\.teacher: got 'world', expected .* 32 pixels"),
    (
      {"kdpl.teacher": "open_clip:none"},
      r"kdpl\.teacher: got 'open_clip:none', expected ",
    ),
    ({"kdpl.prompt": "words"}, r"kdpl\.prompt: got 'words'"),
    (
      {"correction": "none"},
      "correction: got 'none', expected 'log' where method='kdpl'",
    ),
  ],
)
def test_what_can_not_teach_is_named(two, tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    run_job(two[2](**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()
