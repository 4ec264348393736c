"""The analyse job: figures against NumPy on the tower's features, bad input, texts
too long."""

import numpy as np
import pytest

from pomp_jax.clip.load import load_clip
from pomp_jax.clip.text import token_table
from pomp_jax.clip.tokens import TokenizeError
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import evaluate, opening
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.analysis import analyse
from pomp_jax.rooms.interchange.class_feature_files import write_detic
from tests.support.data_files import write_folder
from tests.support.report_page import Page
from tests.support.small_run import changed, run_job, settings, small_config

WORLD = load_clip("world")
# Four words of the vocabulary as a prompt: each is its own nearest token.
WORDS = [600, 601, 610, 655]


def config_of(prompts, n_images, **changes):
  fields = {"analyse.prompts": tuple(map(str, prompts)), "evaluate.sets": "novel"}
  fields |= {"data.n_classes": n_images, "eval.images": n_images}
  return small_config(job="analyse", **fields | changes)


@pytest.fixture(scope="module")
def analysed(shared):
  """The folder, the config and the results of a learned prompt beside two
  hand-written ones."""
  config_in = lambda folder: config_of(
    ["a photo of a {}.", "{}.", folder / "prompt.npz"],
    60,
    **{"analyse.top": 3, "evaluate.sets": "novel;shifted"},
  )

  def make(folder):
    table = token_table(WORLD.params)
    save_prompt(folder / "prompt.npz", Prompt(table[WORDS], "world", "end"))
    run_job(config_in(folder), folder / "run")

  folder = shared("analyse", make)
  return folder / "run", config_in(folder), RunFolder(folder / "run").read_results()


def test_figures(analysed):
  _, config, results = analysed
  encoder = Encoder(WORLD)
  for split in ("novel", "shifted"):
    source = opening.open_source(config.data, split, n_images=config.eval.images)
    images = encoder.image_features(source.images(np.arange(len(source)))).astype(
      np.float64
    )
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
  assert [prompt["label"] for prompt in results["prompts"]] == list(
    config.analyse.prompts
  )


def test_learned_vectors_that_are_words_are_read_back(analysed):
  tokens = analysed[2]["tokens"]
  # Hand-written prompts have no vectors.
  [(label, vectors)] = tokens["vectors"].items()
  assert label.endswith("prompt.npz")
  expected = WORLD.tokenizer.convert_ids_to_tokens(WORDS)
  assert [vector["tokens"][0] for vector in vectors] == expected
  assert all(vector["distances"][0] == 0 < vector["distances"][1] for vector in vectors)
  assert tokens["median_distance_between_tokens"] > 0


def test_the_page_has_the_figures_and_the_nearest_tokens(analysed):
  folder, config, results = analysed
  page, sets = Page((folder / "report.html").read_text()), results["sets"]
  assert page.table("set") == [
    [name, str(of["images"]), "60"] for name, of in sets.items()
  ]
  tables = [table[1:] for table in page.tables if table[0] == ["prompt", *sets]]
  for name, rows in zip(("alignment", "uniformity"), tables, strict=False):
    for label, row in zip(config.analyse.prompts, rows, strict=True):
      figures = [of["prompts"][label][name] for of in sets.values()]
      assert row[1:] == [f"{figure:.3f}" for figure in figures]
  top1 = sets["novel"]["prompts"]["{}."]["top1"]
  assert tables[2][1][1].startswith(f"{100 * top1:.1f} (")
  [vectors] = results["tokens"]["vectors"].values()
  nearest = zip(vectors[0]["tokens"], vectors[0]["distances"], strict=True)
  assert page.table("vector")[0] == [
    "1",
    *(f"{token} {far:.3f}" for token, far in nearest),
  ]


def test_detics_class_features_beside_the_prompt_that_they_are_of(tmp_path):
  """float16 and not normalised, as published."""
  config = config_of(["{}.", tmp_path / "rows.npy"], 5)
  names = opening.open_source(config.data, "novel", n_images=5).names
  rows = Encoder(WORLD).class_features(names, "{}.", unit=False)
  assert np.all(np.abs(np.linalg.norm(rows, axis=-1) - 1) > 0.05)
  write_detic(tmp_path / "rows.npy", rows)
  results = run_job(config, tmp_path / "run")
  words, features = results["sets"]["novel"]["prompts"].values()
  assert words["images"] == features["images"] == 5
  assert features["top1"] == words["top1"]
  for figure in ("alignment", "uniformity"):
    assert features[figure] == pytest.approx(words[figure], abs=2e-3)
  assert results["sets"]["novel"]["similarity_of_prompts"][0][1] == pytest.approx(
    1, abs=1e-4
  )
  assert not results["tokens"]["vectors"]
  write_detic(tmp_path / "rows.npy", rows[:4])
  with pytest.raises(
    PromptFileError, match=r"rows\.npy, set novel: .*\[4, .*accepted: \[5, "
  ):
    analyse.check(config, str(tmp_path / "other"))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("analyse.top", 2),
    ("eval.images", 9),
    ("evaluate.sets", "base"),
    ("data.root", "others"),
  ]
  + [(f"data.{name}", 4) for name in ("shots", "shots_seed")]
  + [(f"data.{name}", 0.3) for name in ("test_share", "validation_share")],
)
def test_what_is_analysed_is_not_replaced(analysed, field, value):
  workdir, config, _ = analysed
  analyse.check(changed(config, {"data.threads": 7}), str(workdir))
  with pytest.raises(ConfigError, match=rf"config\.{field}: got .* was started"):
    analyse.check(changed(config, {field: value}), str(workdir))


@pytest.mark.parametrize("kind", ["template", "ensemble", "prompt", "class_specific"])
def test_the_last_set_is_checked_before_anything_is_written(tmp_path, kind):
  """Two sets of two classes, of which the last name and the set's own template are
  the longest."""
  longest = "the last name"
  # with EOT
  n_tokens = lambda text: len(WORLD.tokenizer(text.format(longest))["input_ids"]) - 1
  write_folder(tmp_path / "short", ("star", "ring"), 1)
  write_folder(tmp_path / "long", ("star", longest), 1)

  def config_with(excess):
    """Of a text of as many tokens as the tower takes, and some more."""
    n_all, prompt = WORLD.positions - 1 + excess, kind
    template = "red " * (n_all - n_tokens("{}")) + "{}"
    assert n_tokens(template) == n_all
    if kind in ("prompt", "class_specific"):
      prompt = str(tmp_path / f"{excess}.npz")
      shape = n_all - n_tokens("{}."), WORLD.text_width
      shape = (2, *shape) if kind == "class_specific" else shape
      save_prompt(prompt, Prompt(np.zeros(shape, np.float32), "world"))
    own = [{"name": name, "root": str(tmp_path / name)} for name in ("short", "long")]
    if kind == "ensemble":
      own[1]["templates"] = ["a {}.", template]
    prompts = (template if kind == "template" else prompt,)
    config = settings(job="evaluate", **{"clip.model": "world"})
    fields = {"evaluate.own_sets": tuple(own), "evaluate.prompts": prompts}
    return config.replace(fields)

  fits, too_long = config_with(0), config_with(1)
  evaluate.check(fits, str(tmp_path / "run"))
  of_analyse = too_long.replace(
    {"job": "analyse", "analyse.prompts": too_long.evaluate.prompts}
  )
  for job, config in ((evaluate, too_long), (analyse, of_analyse)):
    with pytest.raises(
      TokenizeError, match=r"^[^\n]*set long: .* tokens with EOT"
    ) as error:
      job.check(config, str(tmp_path / "run"))
    assert error.value.status == 2 and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()
