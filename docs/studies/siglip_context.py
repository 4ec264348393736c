"""What a context in front of a name learns where the text tower is SigLIP's:
docs/reference/clips.md.

  python -m docs.studies.siglip_context FOLDER

Trains a text tower of the embedded world's size on its captions, against the features
of its frozen image tower, with SigLIP's sigmoid loss: bidirectional, of canonical text
that is padded to 20 positions, of which the last is the feature. Then learns prompts
for it, and compares them with sentences on 4,096 images of each split.

Shapes: B pairs, L tokens, D width, H heads, E embedding.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
import sys
import time
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import CLIPTextConfig

from docs.generators import captions
from docs.generators.train_clip import Recipe, _initial_params, _optimizer
from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.clip.tokens import _canonical
from pomp_jax.config import validate
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import loop, setup
from tests.support.small_run import settings

POSITIONS = 20
RECIPE = Recipe(steps=2000)
SEEDS = (0, 1, 2)
SENTENCES = ("a photo of a {}.", "a specimen of a {}.", "{}.")
_FROM_WORDS = {"prompt.init": "a photo of a"}
_HELD = {"anchors": "a photo of a {}."}
PROMPTS = {
  "in front of the name, random start": {},
  "in front of the name, from a photo of a": _FROM_WORDS,
  "the same, sigmoid loss": _FROM_WORDS | {"loss": "sigmoid", "optim.lr": 0.003},
  "the same, consistency 1": _FROM_WORDS | _HELD | {"consistency_squared": 1.0},
  "the same, consistency 8": _FROM_WORDS | _HELD | {"consistency_squared": 8.0},
  "behind the name, random start": {"prompt.position": "front"},
}


class CanonicalTokenizer:
  """The world's tokens of canonical text, without a start token."""

  bos_token_id, n_after_name = None, 1

  def __init__(self, plain: Any):
    """Takes the world's tokenizer."""
    self._plain = plain
    self.eos_token_id = self.pad_token_id = plain.eos_token_id

  def __call__(
    self, texts: Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, Any]:
    """Returns `input_ids`, with the end token if `add_special_tokens`."""
    rows = self._plain([_canonical(text) for text in texts], add_special_tokens=False)[
      "input_ids"
    ]
    return {
      "input_ids": [
        [*row, self.eos_token_id] if add_special_tokens else row for row in rows
      ]
    }


def text_features(config: Any, params: Any, ids_BxL: jax.Array) -> jax.Array:
  """Plain bidirectional text tower: the feature of the last position."""

  def dense(layer: Any, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]

  def norm(layer: Any, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return scaled * layer["scale"] + layer["bias"]

  model = params["text_model"]
  embeddings = model["embeddings"]
  hidden_BxLxD = embeddings["token_embedding"]["embedding"][ids_BxL]
  hidden_BxLxD += embeddings["position_embedding"]["embedding"][: ids_BxL.shape[1]]
  heads = config.num_attention_heads
  for number in range(config.num_hidden_layers):
    layer = model["encoder"]["layers"][str(number)]
    own, rows = layer["self_attn"], norm(layer["layer_norm1"], hidden_BxLxD)
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    query, key, value = (split(dense(own[f"{name}_proj"], rows)) for name in "qkv")
    weights = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(weights, axis=-1)
    mixed_BxLxD = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(
      hidden_BxLxD.shape
    )
    hidden_BxLxD += dense(own["out_proj"], mixed_BxLxD)
    inner = dense(layer["mlp"]["fc1"], norm(layer["layer_norm2"], hidden_BxLxD))
    hidden_BxLxD += dense(layer["mlp"]["fc2"], inner * jax.nn.sigmoid(1.702 * inner))
  last_BxD = norm(model["final_layer_norm"], hidden_BxLxD[:, -1])
  return last_BxD @ params["text_projection"]["kernel"]


def train_text_tower(folder: pathlib.Path) -> Clip:
  """Returns the world's CLIP with another text tower; reads what an earlier call has
  written."""
  world = load_clip("world")
  old: Any = world.config.text_config
  text = CLIPTextConfig.from_dict(
    old.to_dict() | {"max_position_embeddings": POSITIONS, "bidirectional": True}
  )
  tokenizer = CanonicalTokenizer(world.tokenizer)
  params: Any = jax.tree.map(np.asarray, world.text_params)
  positions = params["text_model"]["embeddings"]["position_embedding"]
  positions["embedding"] = positions["embedding"][:POSITIONS]
  params = _initial_params(params, RECIPE.seed)
  # As SigLIP's: a scale of 10, a bias of -10.
  params |= {"logit_scale": jnp.float32(np.log(10)), "logit_bias": jnp.float32(-10)}
  file = folder / "bidirectional.msgpack"
  config = dataclasses.replace(world.config, text_config=text)
  if not file.exists():
    params = _trained(text, params, tokenizer, Encoder(world))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
      out.write(flax.serialization.to_bytes(jax.device_get(params)))
  params = flax.serialization.from_bytes(params, file.read_bytes())
  name = f"{file.stem} text tower"
  return dataclasses.replace(
    world, name=name, config=config, params=world.params | params, tokenizer=tokenizer
  )


def _trained(
  config: Any, params: Any, tokenizer: CanonicalTokenizer, encoder: Encoder
) -> Any:
  """Parameters after RECIPE's steps of the sigmoid loss (Zhai et al., 2023,
  algorithm 1)."""
  optimizer = _optimizer(RECIPE)

  def loss_of(params: Any, image_BxE: jax.Array, ids_BxL: jax.Array) -> jax.Array:
    text_BxE = text_features(config, params, ids_BxL)
    text_BxE /= jnp.linalg.norm(text_BxE, axis=-1, keepdims=True)
    logits_BxB = (
      jnp.exp(params["logit_scale"]) * image_BxE @ text_BxE.T + params["logit_bias"]
    )
    signs_BxB = 2 * jnp.eye(len(ids_BxL)) - 1
    return -jax.nn.log_sigmoid(signs_BxB * logits_BxB).sum(-1).mean()

  @jax.jit
  def step(params, state, image_BxE, ids_BxL):
    loss, gradient = jax.value_and_grad(loss_of)(params, image_BxE, ids_BxL)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  state, start = optimizer.init(params), time.monotonic()
  for number in range(RECIPE.steps):
    indices = number * RECIPE.batch + np.arange(RECIPE.batch)
    images, texts = captions.training_batch(RECIPE.seed, indices, RECIPE.noise(number))
    ids_BxL = np.full((len(texts), POSITIONS), tokenizer.pad_token_id, np.int32)
    for row, ids in zip(ids_BxL, tokenizer(texts)["input_ids"], strict=True):
      row[: len(ids)] = ids[:POSITIONS]
    params, state, loss = step(params, state, encoder.image_features(images), ids_BxL)
    if number % 100 == 99:
      scale, bias = np.exp(params["logit_scale"]), params["logit_bias"]
      seconds = time.monotonic() - start
      print(
        f"step {number + 1} loss {loss:.3f} scale {scale:.1f} bias {bias:.1f} {seconds:.0f} s"
      )
  return params


def main(folder: pathlib.Path) -> None:
  """Prints a row a prompt: top-1 on the world's splits, of learned ones over three
  seeds."""
  clip = train_text_tower(folder)
  encoder = Encoder(clip)
  # Ours computes what was trained.
  names = opening.open_source(settings().data, "train").names[:64]
  tokens: Any = encoder.vocabulary(names, 0)
  expected = text_features(clip.config.text_config, clip.params, tokens.ids)
  found = encoder.class_features(names, "{}.", unit=False)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  compare(encoder, folder / "runs" / "as_trained")
  # The released SigLIPs end at scales of about 100; this short training ends far below.
  factor = 100 / clip.logit_scale
  params = clip.params | {"logit_scale": np.float32(np.log(100))}
  params |= {"logit_bias": np.float32(factor * clip.params["logit_bias"])}
  compare(Encoder(dataclasses.replace(clip, params=params)), folder / "runs" / "100")


def compare(encoder: Encoder, folder: pathlib.Path) -> None:
  """Prints the rows of one text tower."""
  clip, data = encoder.clip, settings().data
  scale, bias = clip.logit_scale, float(clip.params["logit_bias"])
  print(f"{clip.name}: logit scale {scale:.1f}, bias {bias:.1f}; base, novel, shifted")
  splits = []
  for split in ("base", "novel", "shifted"):
    source = opening.open_source(data, split, n_images=4096)
    classes = opening.class_list(data, "a photo of a {}.", source.names)
    splits.append((classes, split_features(encoder, source)))

  def top1(prompt: Any) -> list[float]:
    of = lambda classes: features_under(encoder, classes, prompt)
    return [
      100
      * topk_accuracy(own.features, of(classes), own.labels, mesh=encoder.mesh)["top1"]
      for classes, own in splits
    ]

  for sentence in SENTENCES:
    print(
      f"| {sentence} | " + " | ".join(f"{value:.1f}" for value in top1(sentence)),
      flush=True,
    )
  for name, fields in PROMPTS.items():
    rows = []
    for seed in SEEDS:
      given: dict[str, Any] = {"k": 128, "batch_size": 128, "steps": 150, "seed": seed}
      given |= {"optim.lr": 0.1, "optim.schedule": "step", "optim.warmup": 0.0}
      given |= {
        "data.images_per_class": 16,
        "eval.images": 4096,
        "checkpoint.every": 150,
      }
      # The bias was learned beside the other pairs of a batch, and now stands beside
      # all classes.
      given["logit_bias"] = bias - math.log(len(splits[0][0].names) / RECIPE.batch)
      config = settings(**given | fields)
      validate(config)
      own = RunFolder(folder / f"{name}_{seed}".replace(" ", "_"))
      run = setup.prepare(config, own, encoder=encoder)
      own.create()
      rows.append(top1(run.prompt_of(loop.train(run).state)))
    mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
    cells = " | ".join(f"{a:.1f} ± {b:.1f}" for a, b in zip(mean, spread, strict=True))
    print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
