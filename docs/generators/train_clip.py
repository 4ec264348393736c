"""Trains the embedded CLIP and its tokenizer, and stores them in HuggingFace's format.

    python -m docs.generators.train_clip --out=DIR

Symmetric contrastive loss (Radford et al., 2021, fig. 3) over captioned images drawn on
the fly, with AdamW, warmup, a cosine schedule, and caption noise that rises from 0 (see
`captions`). An interrupted run resumes from its last checkpoint, `DIR/state.msgpack`.
Files in DIR are written atomically. Needs FlaxCLIP (transformers<5), no network and no
accelerator. `train` takes other images and captions than the world's as `Pairs`.

Shape suffixes: B pairs, S side of an image in pixels, L tokens, E embedding.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import pathlib
import time
from typing import Any

import flax
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import CLIPConfig, CLIPTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from docs.generators import captions
from pomp_jax import world
from pomp_jax.files.atomic import replacing
from pomp_jax.world.render import IMAGE_SIZE

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_POSITIONS = 32
PIXEL_MEAN = (0.45, 0.44, 0.41)
PIXEL_STD = (0.28, 0.25, 0.26)
MAX_LOGIT_SCALE = float(np.log(100))
TEMPLATES = ("a photo of a {}.", "{}.")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Hyperparameters; the defaults made the stored CLIP."""

  steps: int = 5000
  batch: int = 128
  learning_rate: float = 1.5e-3
  warmup_steps: int = 100
  weight_decay: float = 0.05
  clean_until: float = 0.45  # fraction of the steps with caption noise 0
  noisy_from: float = 0.55  # fraction of the steps after which caption noise is 1
  short_tokens: int = 20  # padded length of captions; 1% are longer and lose words
  wordy_every: int = 16  # one batch of this many has captions that fill all positions
  vocabulary: int = 676  # tokens: 512 bytes, the merges, two special ones
  # captions without and with noise that the merges are learned from
  spelled: int = 20_000
  seed: int = 0

  def noise(self, step: int) -> float:
    """Caption noise at a step, in [0, 1]."""
    done = step / self.steps
    return float(
      np.clip((done - self.clean_until) / (self.noisy_from - self.clean_until), 0, 1)
    )


def _novel(n_images: int) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
  source = world.source("novel", n_images=n_images, seed=1)
  return source.names, source.labels, source.images(np.arange(n_images))


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Images and captions to train a CLIP on, and images to test it on.

  Attributes:
    batch: (seed, indices int [B], caption noise) -> images uint8 [B, S, S, 3] and B
    captions.
    test: number of images n -> names of the classes, labels int [n], images uint8 [n,
    S, S, 3].
  """

  batch: Callable[[int, np.ndarray, float], tuple[np.ndarray, list[str]]]
  test: Callable[[int], tuple[Sequence[str], np.ndarray, np.ndarray]]


WORLD = Pairs(captions.training_batch, _novel)


def train_tokenizer(captions: list[str], folder: pathlib.Path, size: int) -> None:
  """Learns the merges from captions and writes CLIP's five tokenizer files into
  `folder`.

  Of `size` tokens, 512 are bytes and two are special; fewer if the captions give fewer
  merges.

  The end token gets the highest id, as in CLIP. Every byte has a token, inside and at
  the end of a word, so that any text can be encoded.
  """
  folder.mkdir(parents=True, exist_ok=True)
  symbol_of = bytes_to_unicode()
  symbols = [symbol_of[byte] for byte in range(256)]
  tokens = symbols + [f"{symbol}</w>" for symbol in symbols]
  trained = _save_tokenizer(tokens, [], folder).train_new_from_iterator(
    captions, size, end_of_word_suffix="</w>", show_progress=False
  )
  learned = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
  merges = [(a, b) for a, b in learned[: size - len(tokens) - 2]]
  _save_tokenizer(tokens + [a + b for a, b in merges], merges, folder)


def _save_tokenizer(
  tokens: list[str], merges: list[tuple[str, str]], folder: pathlib.Path
) -> CLIPTokenizerFast:
  vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
  vocabulary_file, merges_file = folder / "vocab.json", folder / "merges.txt"
  vocabulary_file.write_text(
    json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8"
  )
  lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
  merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
  tokenizer = CLIPTokenizerFast(
    str(vocabulary_file), str(merges_file), model_max_length=MAX_POSITIONS
  )
  tokenizer.save_pretrained(folder)
  return tokenizer


def clip_config(vocabulary: CLIPTokenizerFast) -> CLIPConfig:
  """Architecture: text 3 x 64, vision 3 x 128 on patches of 10 pixels, embedding
  128."""
  shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 128}
  text = shared | {
    "vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 256,
    "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": MAX_POSITIONS, "bos_token_id": vocabulary.bos_token_id,
    "eos_token_id": vocabulary.eos_token_id, "pad_token_id": vocabulary.pad_token_id,
  }  # fmt: skip
  vision = shared | {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": IMAGE_SIZE, "patch_size": 10,
  }  # fmt: skip
  return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)


def normalise(image_BxSxSx3: jax.Array | np.ndarray) -> jax.Array:
  """Converts uint8 [B, S, S, 3] to the vision tower's input, float32 of the same
  shape."""
  return (image_BxSxSx3 / 255.0 - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)


def _wordy(texts: list[str], vocabulary: CLIPTokenizerFast, seed: int) -> list[str]:
  """Puts asides before captions until the text tower's positions are full."""
  rng = np.random.RandomState(seed)
  cost = [
    len(ids)
    for ids in vocabulary(list(captions.ASIDES), add_special_tokens=False).input_ids
  ]
  room = [MAX_POSITIONS - len(ids) for ids in vocabulary(texts).input_ids]
  wordy = []
  for text, left in zip(texts, room, strict=True):
    for aside in rng.permutation(len(cost)):
      if cost[aside] <= left:
        text, left = f"{captions.ASIDES[aside]} {text}", left - cost[aside]
    wordy.append(text)
  return wordy


def _batches(
  recipe: Recipe, pairs: Pairs, vocabulary: CLIPTokenizerFast, first_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Iterates over images uint8 [B, S, S, 3] and token ids int32 [B, L], drawn by a
  thread."""

  def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
    indices = step * recipe.batch + np.arange(recipe.batch)
    image_BxSxSx3, texts = pairs.batch(recipe.seed, indices, recipe.noise(step))
    length = recipe.short_tokens
    if step % recipe.wordy_every == recipe.wordy_every - 1:
      texts, length = _wordy(texts, vocabulary, step), MAX_POSITIONS
    ids = vocabulary(
      texts,
      padding="max_length",
      max_length=length,
      truncation=True,
      return_tensors="np",
    ).input_ids
    return image_BxSxSx3, ids.astype(np.int32)

  steps = grain.MapDataset.range(first_step, recipe.steps).map(draw)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return iter(steps.to_iter_dataset(options))


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    recipe.learning_rate,
    recipe.warmup_steps,
    recipe.steps,
    0.01 * recipe.learning_rate,
  )
  # Decay applies to matrices, not to biases, layer norms and the logit scale.
  is_matrix = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule, b2=0.98, weight_decay=recipe.weight_decay, mask=is_matrix),
  )


def _initial_params(params, seed: int):
  """Draws initial weights, each matrix scaled by its fan-in.

  HuggingFace's Flax CLIP uses a scale of 0.01 to 0.02, which suits widths near a
  thousand. At width 128, attention and positions are then too weak beside the patches'
  mean colours to learn shapes and patterns.
  """
  rng = np.random.RandomState(seed)

  def draw(path, leaf):
    name = "/".join(key.key for key in path)
    if name.endswith("kernel"):
      std = np.prod(leaf.shape[:-1]) ** -0.5
      # Terms of the residual stream are scaled by their number (3 layers, 2 a layer).
      std *= 6**-0.5 if "out_proj" in name or "fc2" in name else 1.0
    elif "vision_model/embeddings" in name:
      std = 0.3
    elif name.endswith("token_embedding/embedding"):
      std = 0.05
    elif name.endswith("position_embedding/embedding"):
      std = 0.02
    else:
      return leaf
    return jnp.asarray(rng.standard_normal(leaf.shape) * std, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, params)


def _train_step(model: Any, optimizer: optax.GradientTransformation):
  """Builds (params, opt_state, images, ids) -> (params, opt_state, loss, accuracy)."""

  def loss_of(params, image_BxSxSx3, ids_BxL):
    output = model.module.apply(
      {"params": params}, ids_BxL, normalise(image_BxSxSx3), jnp.ones_like(ids_BxL),
      jnp.broadcast_to(jnp.arange(ids_BxL.shape[1]), ids_BxL.shape), True,
    )  # fmt: skip
    logits_BxB = output.logits_per_image
    labels_B = jnp.arange(len(ids_BxL))
    both = [
      optax.softmax_cross_entropy_with_integer_labels(logits, labels_B).mean()
      for logits in (logits_BxB, logits_BxB.T)
    ]
    return sum(both) / 2, (logits_BxB.argmax(1) == labels_B).mean()

  def step(params, opt_state, image_BxSxSx3, ids_BxL):
    grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, accuracy), grads = grad(params, image_BxSxSx3, ids_BxL)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    params["logit_scale"] = jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)
    return params, opt_state, loss, accuracy

  return jax.jit(step, donate_argnums=(0, 1))


def zero_shot(
  model: Any, params, vocabulary: CLIPTokenizerFast, template: str, n_images: int = 1024,
  pairs: Pairs = WORLD,
) -> float:  # fmt: skip
  """Zero-shot top-1, in [0, 1], over all classes of the test images, with one
  template."""
  names, labels_B, image_BxSxSx3 = pairs.test(n_images)
  ids_NxL = vocabulary(
    [template.format(name) for name in names], padding="longest", return_tensors="np"
  ).input_ids
  text_of = jax.jit(lambda p, ids: model.get_text_features(ids, params=p))
  image_of = jax.jit(lambda p, image: model.get_image_features(image, params=p))
  text_NxE = np.concatenate(
    [text_of(params, ids) for ids in np.array_split(ids_NxL, 8)]
  )
  # HuggingFace expects channels first here.
  pixels_Bx3xSxS = jnp.transpose(normalise(image_BxSxSx3), (0, 3, 1, 2))
  image_BxE = np.asarray(image_of(params, pixels_Bx3xSxS))
  text_NxE /= np.linalg.norm(text_NxE, axis=1, keepdims=True)
  return float(((image_BxE @ text_NxE.T).argmax(1) == labels_B).mean())


def _replace(path: pathlib.Path, content: bytes) -> None:
  with replacing(path) as file:
    file.write(content)


def _store(model: Any, params, out: pathlib.Path) -> None:
  """Writes the CLIP with a logit scale of 100, as in OpenAI's released CLIPs.

  Training ends here at a scale of about 28, because of noisy captions and small
  batches. The scale does not change the ranking of classes. But at 28 the loss of a
  prompt weighs thousands of dissimilar classes more than the few that are confused, so
  its minimum is not the best classifier.
  """
  preprocessor = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True,
    "do_normalize": True, "do_rescale": True, "do_convert_rgb": True, "resample": 3,
    "size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "image_mean": list(PIXEL_MEAN), "image_std": list(PIXEL_STD),
  }  # fmt: skip
  config = model.config.to_dict() | {"architectures": ["CLIPModel"]}
  for name, content in (
    ("preprocessor_config.json", preprocessor),
    ("config.json", config),
  ):
    _replace(
      out / name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    )
  stored = {**params, "logit_scale": jnp.asarray(MAX_LOGIT_SCALE, jnp.float32)}
  _replace(
    out / "flax_model.msgpack", flax.serialization.to_bytes(jax.device_get(stored))
  )


def train(
  recipe: Recipe, out: pathlib.Path, checkpoint_every: int = 250, pairs: Pairs = WORLD
) -> None:
  """Trains a FlaxCLIP and stores it in `out`; resumes a run that was interrupted."""
  from transformers import FlaxCLIPModel  # of transformers<5

  out.mkdir(parents=True, exist_ok=True)
  if not (out / "tokenizer_config.json").exists():
    texts = [
      text
      for noise in (0.0, 1.0)
      for text in pairs.batch(recipe.seed, np.arange(recipe.spelled), noise)[1]
    ]
    train_tokenizer(texts + list(captions.ASIDES) * 200, out, recipe.vocabulary)
  vocabulary = CLIPTokenizerFast.from_pretrained(out)
  model = FlaxCLIPModel(clip_config(vocabulary), seed=recipe.seed)
  optimizer = _optimizer(recipe)
  params = _initial_params(model.params, recipe.seed)
  state = {"params": params, "opt_state": optimizer.init(params), "step": 0}
  if (out / "state.msgpack").exists():
    state = flax.serialization.from_bytes(state, (out / "state.msgpack").read_bytes())
    print(f"resuming at step {state['step']}", flush=True)
  params, opt_state, first_step = (
    state["params"],
    state["opt_state"],
    int(state["step"]),
  )
  train_step = _train_step(model, optimizer)
  began, losses = time.monotonic(), []
  for step, (image, ids) in enumerate(
    _batches(recipe, pairs, vocabulary, first_step), first_step + 1
  ):
    params, opt_state, loss, accuracy = train_step(params, opt_state, image, ids)
    losses.append((loss, accuracy))
    if step % 50 == 0 or step == recipe.steps:
      seconds = (time.monotonic() - began) / (step - first_step)
      mean = np.mean(np.array(losses), axis=0)
      losses = []
      print(
        f"step {step}/{recipe.steps}  loss {mean[0]:.3f}  acc {mean[1]:.3f}  "
        f"noise {recipe.noise(step - 1):.2f}  scale {np.exp(params['logit_scale']):.1f}  "
        f"{seconds * 1000:.0f} ms/step  eta {seconds * (recipe.steps - step) / 60:.1f} min",
        flush=True,
      )
    if step % checkpoint_every == 0:
      state = {"params": params, "opt_state": opt_state, "step": step}
      _replace(
        out / "state.msgpack", flax.serialization.to_bytes(jax.device_get(state))
      )
      shown = [zero_shot(model, params, vocabulary, t, pairs=pairs) for t in TEMPLATES]
      print(
        f"  zero-shot top-1: a photo of a {shown[0]:.3f}, bare {shown[1]:.3f}",
        flush=True,
      )
  _store(model, params, out)
  (out / "state.msgpack").unlink(missing_ok=True)
  print(f"stored in {out}", flush=True)


def main() -> None:
  """Runs the command line, with one flag for each field of `Recipe`."""
  parser = argparse.ArgumentParser(description="Trains the tiny CLIP of the world.")
  parser.add_argument(
    "--out", type=pathlib.Path, required=True, help="folder to store it in"
  )
  for field in dataclasses.fields(Recipe):
    parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
  arguments = vars(parser.parse_args())
  train(out=arguments.pop("out"), recipe=Recipe(**arguments))


if __name__ == "__main__":
  main()
