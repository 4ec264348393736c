"""The analyse job: figures against NumPy on the tower's features, its files, bad input."""

import json

import numpy as np
from PIL import Image
import pytest
import torch

from pomp_jax import inputs
from pomp_jax.clip import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.files.class_features import write_detic
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.jobs import analyse
from pomp_jax.world import CLIP_PATH
from tests.support.openai_clip import N_TOKENS, VIT, small_open_clip, write_merges, write_settings
from tests.support.small_run import changed, small_config


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
  """The folder, the clip, and the results of a learned prompt beside two hand-written ones."""
  folder = tmp_path_factory.mktemp("analyse")
  clip = load_clip(str(CLIP_PATH), name="world")
  table = clip.text_params["text_model"]["embeddings"]["token_embedding"]["embedding"]
  # Four words of the vocabulary as a prompt: each is its own nearest token.
  words = [600, 601, 610, 655]
  save_prompt(folder / "prompt.npz", Prompt(table[words], "world", "end"))
  prompts = ["a photo of a {}.", "{}.", str(folder / "prompt.npz")]
  config = small_config(
    job="analyse",
    **{
      "analyse.prompts": ";".join(prompts),
      "analyse.top": 3,
      "evaluate.sets": "novel;shifted",
      "data.n_classes": 60,
    },
  )
  analyse.check(config, str(folder / "run"))
  return folder / "run", clip, words, prompts, config, analyse.run(config, str(folder / "run"))


def test_figures(analysed):
  _, clip, _, prompts, config, results = analysed
  encoder = Encoder(clip)
  for split in ("novel", "shifted"):
    source = inputs.open_source(config.data, split, n_images=config.eval.images)
    images = encoder.image_features(source.images(np.arange(len(source)))).astype(np.float64)
    classes = encoder.class_features(source.names, "{}.").astype(np.float64)
    found = results["sets"][split]["prompts"]["{}."]
    distances = np.sum((images - classes[source.labels]) ** 2, axis=-1)
    assert found["alignment"] == pytest.approx(distances.mean(), rel=1e-5)
    squares = np.sum((classes[:, None] - classes[None]) ** 2, axis=-1)
    potentials = np.exp(-2 * squares[np.triu_indices(len(classes), 1)])
    assert found["uniformity"] == pytest.approx(np.log(potentials.mean()), abs=1e-5)
    top1 = np.mean((images @ classes.T).argmax(-1) == source.labels)
    assert found["top1"] == pytest.approx(top1)
    assert results["sets"][split]["classes"] == 60
    assert np.shape(results["sets"][split]["similarity_of_prompts"]) == (3, 3)
  assert [prompt["label"] for prompt in results["prompts"]] == prompts


def test_learned_vectors_that_are_words_are_read_back(analysed):
  _, clip, words, prompts, _, results = analysed
  vectors = results["tokens"]["vectors"]
  # Hand-written prompts have no vectors.
  assert list(vectors) == [prompts[2]]
  expected = clip.tokenizer.convert_ids_to_tokens(words)
  assert [vector["tokens"][0] for vector in vectors[prompts[2]]] == expected
  assert all(vector["distances"][0] == 0 < vector["distances"][1] for vector in vectors[prompts[2]])
  assert results["tokens"]["median_distance_between_tokens"] > 0


def test_files(analysed):
  workdir, _, _, prompts, _, results = analysed
  stored = json.loads((workdir / "results.json").read_text())
  assert stored["sets"]["novel"]["prompts"] == results["sets"]["novel"]["prompts"]
  report = (workdir / "results.md").read_text()
  assert f"{results['sets']['novel']['prompts']['{}.']['alignment']:.3f}" in report
  assert "## Nearest tokens" in report
  plots = {path.name for path in (workdir / "plots").iterdir()}
  assert plots == {
    "alignment_uniformity.png",
    *(f"{kind}_{name}.png" for kind in ("map", "similarity") for name in ("novel", "shifted")),
  }
  for path in (workdir / "plots").iterdir():
    with Image.open(path) as image:
      assert min(image.size) > 300
      assert len(np.unique(image.convert("L"))) > 10


def test_a_clip_in_open_clips_layout(tmp_path):
  """Its tokenizer is ours, not HuggingFace's."""
  vision = VIT | {"image_size": 40}  # the world's
  model = small_open_clip(vision, context_length=48)
  torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
  write_settings(tmp_path, vision, quick_gelu=True, text_cfg__context_length=48)
  write_merges(tmp_path)
  # "star", a token of its own, and EOT.
  words = [N_TOKENS - 3, N_TOKENS - 1]
  table = model.token_embedding.weight.detach().numpy()
  save_prompt(tmp_path / "prompt.npz", Prompt(table[words], str(tmp_path), "end"))
  config = small_config(
    job="analyse",
    **{
      "clip.model": str(tmp_path),
      "analyse.prompts": str(tmp_path / "prompt.npz"),
      "evaluate.sets": "novel",
      "data.n_classes": 5,
      "eval.images": 5,
    },
  )
  analyse.check(config, str(tmp_path / "run"))
  [vectors] = analyse.run(config, str(tmp_path / "run"))["tokens"]["vectors"].values()
  assert [vector["tokens"][0] for vector in vectors] == ["star</w>", "<|endoftext|>"]


def test_detics_class_features_beside_the_prompt_that_they_are_of(tmp_path):
  """float16 and not normalised, as published."""
  clip = load_clip("world")
  fields = {"evaluate.sets": "novel", "data.n_classes": 5, "eval.images": 5}
  config = small_config(job="analyse", **fields)
  source = inputs.open_source(config.data, "novel", n_images=5)
  rows = Encoder(clip).class_features(source.names, "{}.", unit=False)
  assert np.all(np.abs(np.linalg.norm(rows, axis=-1) - 1) > 0.05)
  write_detic(tmp_path / "rows.npy", rows)
  config = changed(config, {"analyse.prompts": f"{{}}.; {tmp_path / 'rows.npy'}"})
  analyse.check(config, str(tmp_path / "run"))
  results = analyse.run(config, str(tmp_path / "run"))
  words, features = results["sets"]["novel"]["prompts"].values()
  assert words["images"] == features["images"] == 5
  assert features["top1"] == words["top1"]
  for figure in ("alignment", "uniformity"):
    assert features[figure] == pytest.approx(words[figure], abs=2e-3)
  assert results["sets"]["novel"]["similarity_of_prompts"][0][1] == pytest.approx(1, abs=1e-4)
  assert not results["tokens"]["vectors"]

  write_detic(tmp_path / "rows.npy", rows[:4])
  with pytest.raises(PromptFileError, match=r"rows\.npy, set novel: .*\[4, .*accepted: \[5, "):
    analyse.check(config, str(tmp_path / "other"))


def test_what_is_analysed_is_not_replaced(analysed):
  workdir, _, _, _, config, _ = analysed

  def check(field, value):
    analyse.check(changed(config, {field: value}), str(workdir))

  check("k", 7)
  for field, value in (
    ("analyse.top", 2),
    ("eval.images", 9),
    ("evaluate.sets", "base"),
    ("data.root", "others"),
    ("data.shots", 4),
    ("data.shots_seed", 2),
    ("data.test_share", 0.3),
    ("data.validation_share", 0.3),
  ):
    with pytest.raises(ConfigError, match=rf"config\.{field}: got .* was started"):
      check(field, value)


def test_bad_input_names_its_field(tmp_path):
  with pytest.raises(
    ConfigError, match=r"config\.analyse\.prompts: got 'nothing', expected one or"
  ):
    analyse.check(small_config(**{"analyse.prompts": "nothing"}), str(tmp_path))
