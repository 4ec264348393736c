"""Features and probabilities against HuggingFace's torch CLIP; the job predict
against them."""

import csv
import dataclasses
from unittest import mock

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.clip.load import load_clip
from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.images import ImageError
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.evaluate.metrics import EvaluationError
from pomp_jax.evaluate.named_prompts import NamedPrompt, turned_otherwise, warn_of_turns
from pomp_jax.files.pieces import ArrayCache
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.support.clips import huggingface_outputs, with_kernel, words_as_prompt
from tests.support.small_run import run_job, small_config

NAMES = [
  "cat",
  "dog",
  "grey_wolf",
  "star",
  "sea star",
  "hat",
  "a rather long name",
  "x",
  "the",
]


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def torch_outputs(clip_and_torch, images):
  """(text features, image features, probabilities) of "a photo of a {}."."""
  texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
  output = huggingface_outputs(*clip_and_torch, images, texts)
  return (
    output.text_embeds.numpy(),
    output.image_embeds.numpy(),
    output.logits_per_image.softmax(-1).numpy(),
  )


def test_a_template_and_its_words_as_context(
  clip_and_torch, encoder, torch_outputs, tmp_path
):
  clip, _ = clip_and_torch
  words = words_as_prompt(clip, "a photo of a")
  save_prompt(tmp_path / "prompt.npz", words)
  for prompt in ("a photo of a {}.", words, tmp_path / "prompt.npz"):
    features = Classifier(encoder, prompt, NAMES).class_features
    np.testing.assert_allclose(features, torch_outputs[0], atol=1e-5)


@pytest.fixture(scope="module")
def classifier(encoder):
  return Classifier(encoder, "a photo of a {}.", NAMES, batch_size=4)


def test_one_image_and_several_of_any_kind(classifier, images, torch_outputs, tmp_path):
  mixed = [
    tmp_path / "a.png",
    images[1],
    Image.fromarray(images[2]),
    str(tmp_path / "b.png"),
  ]
  Image.fromarray(images[0]).save(mixed[0])
  Image.fromarray(images[3]).save(mixed[3])
  for several in (images, (*mixed, images[4]), (image for image in images)):
    np.testing.assert_allclose(
      classifier.probabilities(several), torch_outputs[2], atol=1e-5
    )
  best = classifier.predict(images, top=99)
  assert best == classifier.predict(iter(images), top=len(NAMES))
  for row, expected in zip(best, torch_outputs[2], strict=True):
    order = np.argsort(-expected)
    assert [name for name, _ in row] == [NAMES[i] for i in order]
    np.testing.assert_allclose([p for _, p in row], expected[order], atol=1e-5)
  # Each kind alone.
  for one, row, expected in zip(mixed, best, torch_outputs[2], strict=False):
    np.testing.assert_allclose(classifier.probabilities(one), expected, atol=1e-5)
    [(name, probability)] = classifier.predict(one, top=1)
    assert (name, probability) == (row[0][0], pytest.approx(row[0][1], 1e-4))
  assert classifier.predict([]) == []
  assert classifier.probabilities([]).shape == (0, len(NAMES))


def test_images_are_read_a_batch_at_a_time_in_few_shapes(
  classifier, images, monkeypatch
):
  """Else ten thousand files are in memory together, and each number of them is
  compiled anew."""
  read, computed, compute = [], [], classifier._encoder.image_features

  def recorded(pixels):
    computed.append((len(read), len(pixels)))
    return compute(pixels)

  monkeypatch.setattr(classifier._encoder, "image_features", recorded)
  stream = (read.append(i) or images[i % 5] for i in range(11))
  found = classifier.probabilities(stream)
  assert computed == [(4, 4), (8, 4), (11, 4)]
  np.testing.assert_allclose(found[:4], found[5:9], atol=1e-6)
  computed.clear()
  for count in range(1, 6):
    classifier.probabilities(images[:count])
  assert {rows for _, rows in computed} == {1, 2, 4}


def test_images_that_are_none(classifier, images, tmp_path):
  (tmp_path / "cut.png").write_bytes(b"nothing")
  Image.fromarray(images[0]).save(tmp_path / "a.png")
  for path in (tmp_path / "cut.png", tmp_path / "missing.png", tmp_path):
    for several in (path, [tmp_path / "a.png", path]):
      with pytest.raises(ImageError, match=r"^[^\n]*$") as error:
        classifier.predict(several)
      assert str(error.value).startswith(f"{path}: ")
  for image in (images[0] / 255, images[0, ..., 0], None, 7):
    with pytest.raises(ImageError, match=r"^image 5: [^\n]*uint8 \[H,W,3\]"):
      # whose items the type checker does not see
      classifier.predict(iter([*images, image]))
  with pytest.raises(ImageError, match=r"^image 0: .*float64 \[32, 32, 3\]"):
    classifier.predict(images[0] / 255)
  with pytest.raises(InputError, match="top: got 0"):
    classifier.predict(images, top=0)
  with pytest.raises(InputError, match="batch_size: got 0"):
    Classifier(classifier._encoder, "{}", NAMES, batch_size=0)


def test_pictures_become_square_as_the_clip_asks(classifier, monkeypatch, tmp_path):
  """A wide one is cropped by OpenAI's CLIPs, and squashed by others."""
  clip, size = classifier._encoder.clip, classifier._encoder.clip.image_size
  wide = np.random.default_rng(1).integers(0, 256, (30, 90, 3), np.uint8)
  Image.fromarray(wide).save(tmp_path / "wide.png")
  squashed = np.asarray(
    Image.fromarray(wide).resize((size, size), Image.Resampling.BICUBIC)
  )
  expected, cropped = classifier.probabilities(squashed), classifier.probabilities(wide)
  assert np.abs(expected - cropped).max() > 1e-3
  monkeypatch.setattr(
    classifier._encoder, "clip", dataclasses.replace(clip, squash=True)
  )
  for picture in (tmp_path / "wide.png", wide, Image.fromarray(wide)):
    np.testing.assert_allclose(classifier.probabilities(picture), expected, atol=1e-6)


def test_features_are_computed_once_for_a_prompt_a_clip_and_names(
  clip_and_torch, tmp_path
):
  clip, _ = clip_and_torch
  cache, names = ArrayCache(tmp_path / "cache"), NAMES[:3]
  cache.keep = mock.Mock(wraps=cache.keep)
  encoder = Encoder(clip, chunk=8, cache=cache)
  words = words_as_prompt(clip, "a photo of a")
  first = encoder.class_features(names, words)
  again = encoder.class_features(list(names), words_as_prompt(clip, "a photo of a"))
  np.testing.assert_array_equal(first, again)
  assert cache.keep.call_count == 1
  # In another process: from the file.
  later = ArrayCache(tmp_path / "cache")
  later.keep = mock.Mock(wraps=later.keep)
  found = Encoder(load_clip(clip.name), chunk=8, cache=later).class_features(
    names, words
  )
  np.testing.assert_array_equal(first, found)
  assert not later.keep.called
  # One weight of the text tower in the last place.
  kernel = np.array(clip.params["text_projection"]["kernel"])
  kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(np.inf))
  moved = with_kernel(clip, "text_projection", kernel)
  others = (
    lambda: encoder.class_features(names[:-1], words),
    lambda: encoder.class_features(names[::-1], words),
    lambda: encoder.class_features(names, words_as_prompt(clip, "a photo of the")),
    lambda: encoder.class_features(
      names, words_as_prompt(clip, "a photo of a", position="front")
    ),
    lambda: encoder.class_features(names, "a photo of a {}."),
    lambda: Encoder(moved, chunk=8, cache=cache).class_features(names, words),
    lambda: Encoder(clip, chunk=8, dtype="bfloat16", cache=cache).class_features(
      names, words
    ),
  )
  for number, other in enumerate(others, 2):
    other()
    assert cache.keep.call_count == number


def test_class_specific_contexts_follow_their_class(clip_and_torch, encoder):
  """Also of more classes than the text tower has positions."""
  clip, _ = clip_and_torch
  names = [*NAMES[2:5], *(f"x{number}" for number in range(clip.positions))]
  rng = np.random.default_rng(0)
  context = rng.normal(size=(len(names), 3, clip.text_width)).astype(np.float32)
  found = encoder.class_features(names, Prompt(context, "random"))
  for number in (0, 1, 2, len(names) - 1):
    expected = encoder.class_features(
      [names[number]], Prompt(context[number], "random")
    )[0]
    np.testing.assert_allclose(found[number], expected, atol=1e-5)
  with pytest.raises(PromptFileError, match="class-specific"):
    encoder.class_features(names[:2], Prompt(context, "random"))


def test_refused_prompts_and_names(encoder, tmp_path):
  (tmp_path / "prompt.npz").write_bytes(b"nothing")
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    Classifier(encoder, tmp_path / "prompt.npz", NAMES)
  with pytest.raises(PromptFileError, match="width 7"):
    Classifier(encoder, Prompt(np.zeros((4, 7), np.float32), "other"), NAMES)
  for text in ("prompt.npz", "a photo of", "{} or {}", ""):
    with pytest.raises(PromptFileError, match=r"^prompt: .*one \{\}"):
      Classifier(encoder, text, NAMES)
    with pytest.raises(PromptFileError, match=r"one \{\}$"):
      encoder.class_features(NAMES, text)
  with pytest.raises(VocabularyError, match="cat"):
    Classifier(encoder, "a photo of a {}.", ["cat", "cat"])
  with pytest.raises(VocabularyError, match="empty"):
    Classifier(encoder, "a photo of a {}.", [])


@pytest.mark.parametrize("part", ["text_projection", "visual_projection"])
def test_a_clip_that_is_not_finite_classifies_nothing(clip_and_torch, images, part):
  clip, _ = clip_and_torch
  broken = with_kernel(clip, part, np.nan * clip.params[part]["kernel"])
  with pytest.raises(
    EvaluationError, match=r"of (9 classes|5 images) have features that are not"
  ):
    Classifier(broken, "a photo of a {}.", NAMES).predict(list(images))


def turned(path, pixels):
  """Writes a picture that lies on its side, as its EXIF says."""
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
  return path


def recorded(context, **data):
  """A prompt whose config has these fields of the data."""
  return Prompt(context, "random", config={"data": {"source": "folder"} | data})


def test_pictures_are_turned_as_in_the_training_and_else_as_a_person_sees_them(
  encoder, images, tmp_path
):
  standing = images[0]
  context = np.zeros((2, encoder.clip.text_width), np.float32)
  path = turned(tmp_path / "a.png", standing)
  lying = standing.transpose(1, 0, 2)[::-1]
  for prompt, upright, expected in (
    ("a {}", None, standing),
    ("a {}", False, lying),
    (recorded(context), None, standing),
    (recorded(context, upright=True), None, standing),
    (recorded(context, upright=False), None, lying),
    (recorded(context, upright=False), True, standing),
  ):
    found = Classifier(encoder, prompt, NAMES, upright=upright)
    assert found.upright == (expected is standing)
    wanted = found.probabilities(expected)
    for picture in (path, Image.open(path)):
      np.testing.assert_allclose(found.probabilities(picture), wanted, atol=1e-6)


def test_a_prompt_without_a_run_needs_names(encoder):
  for prompt in ("a {}", recorded(np.zeros((2, encoder.clip.text_width), np.float32))):
    with pytest.raises(VocabularyError, match=r"^names: [^\n]*class_names\.json"):
      Classifier(encoder, prompt)


@pytest.mark.parametrize(
  ("recorded_rule", "rule", "n_lines"),
  [(True, False, 1), (False, True, 1), (True, True, 0)],
)
def test_another_rule_than_the_trainings_is_one_line(
  caplog, recorded_rule, rule, n_lines
):
  prompt = recorded(np.zeros((2, 8), np.float32), upright=recorded_rule)
  prompts = [NamedPrompt("own", prompt), NamedPrompt("texts", "a {}")]
  warn_of_turns(prompts, rule, f"{caplog.handler} {rule} {recorded_rule}")
  assert turned_otherwise(prompts, rule) == ["own"] * n_lines
  assert ["own" in line for line in caplog.messages] == [True] * n_lines


# Names of files and of classes that CSV, spreadsheets and consoles take for something
# else.
KEYS = ('-b/+1,"2".png', "=cmd|' '!A1.png", "a/b/ü\n.png", "a/c.png", "z.png")
SHOWN = ["red star", 'blue "ring", large', "teal leaf"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Pictures in folders within folders, names, and a run's folder."""
  root = tmp_path_factory.mktemp("predict")
  for key, image in zip(KEYS, pixels(), strict=True):
    (root / "images" / key).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / key)
  for hidden in (".git/d.png", "a/.d.png"):
    (root / "images" / hidden).parent.mkdir(exist_ok=True)
    (root / "images" / hidden).write_bytes((root / "images" / "z.png").read_bytes())
  (root / "images" / "link").symlink_to(root / "images" / "a")
  (root / "names.txt").write_text("\n".join(SHOWN))
  (root / "run").mkdir()
  context = np.random.default_rng(0).normal(0, 0.02, (4, 64)).astype(np.float32)
  save_prompt(root / "run" / "prompt.npz", Prompt(context, "world"))
  return root


def pixels():
  return world.source("novel", n_images=len(KEYS)).images(np.arange(len(KEYS)))


def predicted(root, workdir, upright=False, **changes):
  """The rows of each picture in `results.json`."""
  fields = {
    "images": root / "images",
    "names": root / "names.txt",
    "prompt": root / "run",
  }
  fields = {
    f"predict.{field}": str(value) for field, value in (fields | changes).items()
  }
  run_job(small_config(job="predict", **fields, **{"data.upright": upright}), workdir)
  return RunFolder(workdir).read_results()["images"]


@pytest.mark.parametrize(("prompt", "top"), [("a photo of a {}.", 2), ("run", 5)])
def test_names_and_probabilities_are_the_classifiers(
  root, tmp_path, capsys, prompt, top
):
  prompt = str(root / "run") if prompt == "run" else prompt
  found = predicted(root, tmp_path / "run", prompt=prompt, top=top)
  expected = Classifier(load_clip("world"), prompt, SHOWN).predict(
    list(pixels()), top=top
  )
  assert list(found) == list(KEYS)
  for rows, best in zip(found.values(), expected, strict=True):
    assert [row["name"] for row in rows] == [name for name, _ in best]
    np.testing.assert_allclose(
      [row["probability"] for row in rows], [p for _, p in best], 1e-5
    )
  # A line for each, whatever the file's name is.
  assert len(capsys.readouterr().out.splitlines()) == len(KEYS)


@pytest.mark.parametrize("upright", [False, True])
def test_one_picture(root, tmp_path, upright):
  """Also one that lies on its side, and whose EXIF says so."""
  picture, exif = Image.open(root / "images/a/c.png"), Image.Exif()
  exif[0x0112] = 6
  picture = picture.transpose(Image.Transpose.ROTATE_90) if upright else picture
  picture.save(tmp_path / "c.png", exif=exif)
  found = predicted(root, tmp_path / "one", upright, images=tmp_path / "c.png")
  [(key, rows)] = found.items()
  assert key == "c.png"
  for found, expected in zip(
    rows, predicted(root, tmp_path / "all")["a/c.png"], strict=True
  ):
    assert found["name"] == expected["name"]
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-4)


def test_the_csv_file_holds_what_the_json_file_does(root, tmp_path):
  expected = [
    {
      "file": key,
      "rank": str(rank),
      "name": one["name"],
      "probability": str(one["probability"]),
    }
    for key, best in predicted(root, tmp_path).items()
    for rank, one in enumerate(best, 1)
  ]
  with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert not any(row["file"].startswith(("=", "-")) for row in rows)
  assert [row | {"file": row["file"].removeprefix("./")} for row in rows] == expected
  # What is written there is the file's path still.
  assert all((root / "images" / row["file"]).is_file() for row in rows)
