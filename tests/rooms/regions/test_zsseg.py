"""`segment` on one checkpoint of ZSSeg's layout, against a restatement of ZSSeg's
test in torch."""

import copy

import numpy as np
from PIL import Image
import pytest
import torch
from torch.nn import functional

from pomp_jax.clip.load import load_clip
from tests.rooms.regions.region_jobs import crop_feature, regions_config
from tests.support.clips import randomise
from tests.support.openai_clip import VIT, small_open_clip, write_merges
from tests.support.small_run import run_job
from tests.support.torch_mask_former import (
  predictions,
  torch_mask_former,
  torch_pixels,
  zsseg_state,
)

NAMES = ("the cat", "dog", "star", "of the star")
GROUPS = ("base", "base", "novel", "base")
SIZE, THRESHOLD, E_BASE, E_NOVEL = 40, 0.5, 0.2, 0.8
# One is enlarged in the network, one reduced; sides are no multiples of 4 or 32 there.
SIDES = ((33, 48), (61, 50))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
  """Folder of the checkpoint, the CLIP, images and labels; the modules in torch; the
  prompt."""
  root = tmp_path_factory.mktemp("zsseg")
  rng = np.random.default_rng(6)
  clip, network = centred(small_open_clip(VIT), randomise(torch_mask_former(), seed=1))
  write_merges(root)
  torch.save(clip.half().state_dict(), root / "clip.pt")
  clip = clip.float()
  state = zsseg_state(network, clip.state_dict())
  context = torch.tensor(rng.normal(0, 0.5, (4, 64))).float()
  state["clip_adapter.prompt_learner.ctx"] = context
  torch.save({"model": state, "iteration": 59_999}, root / "model_final.pth")
  for folder in ("images", "labels"):
    (root / folder).mkdir()
  lines = [f"{name}\t{group}" for name, group in zip(NAMES, GROUPS, strict=True)]
  (root / "names.txt").write_text("\n".join(lines))
  for number, (height, width) in enumerate(SIDES):
    image = blurred(rng, height, width)
    Image.fromarray(image).save(root / "images" / f"{number}.png")
    labels = rng.choice([0, 1, 2, 3, 255], (height, width)).astype(np.uint8)
    Image.fromarray(labels).save(root / "labels" / f"{number}.png")
  return root, network, clip, context


def centred(clip, network):
  """Without what the outputs of random weights have in common, so that classes
  differ."""
  rng = np.random.default_rng(1)
  images = np.array([blurred(rng, 64, 64) for _ in range(4)])
  tower, embed = clip.visual, network.class_predictor.layers[-1].layers[0]
  mask = network.mask_embedder.layers[-1].layers[0]
  with torch.no_grad():
    pixels = torch.tensor(images[:, ::2, ::2]).permute(0, 3, 1, 2) / 128 - 1.0
    mean = clip.encode_image(pixels).mean(0)
    tower.ln_post.bias -= mean @ torch.linalg.pinv(tower.proj)
    _, embeddings = predictions(network, images)
    embed.bias -= torch.tensor(embeddings[-1]).mean((0, 1))
    queries = []
    hook = network.mask_embedder.register_forward_hook(
      lambda *parts: queries.append(parts[-1])
    )
    predictions(network, images)
    hook.remove()
    mask.bias -= queries[-1][-1].mean((0, 1))
    # Lower logits, so that a part of the pixels has no mask above 1/510.
    features = network(torch_pixels(images)).pixel_decoder_last_hidden_state.mean(
      (0, 2, 3)
    )
    mask.bias -= 6 * features / features.square().sum()
  return clip, network


def blurred(rng, height, width):
  coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def text_features(clip, context, root):
  """[SOS, context, name, ".", EOT] through open_clip's tower; unit rows."""
  tokenizer = load_clip(str(root / "clip.pt")).tokenizer
  tower, rows = copy.deepcopy(clip), []
  # Letters that no name has stand for the context.
  stand_ins = list(range(200, 200 + len(context)))
  with torch.no_grad():
    tower.token_embedding.weight[stand_ins] = context
  for name in NAMES:
    first, *own = tokenizer([f"{name}."])["input_ids"][0]
    assert not set(own) & set(stand_ins)
    rows.append([first, *stand_ins, *own])
  padded = torch.zeros(len(rows), tower.context_length, dtype=torch.long)
  for row, tokens in zip(padded, rows, strict=True):
    row[: len(tokens)] = torch.tensor(tokens)
  with torch.no_grad():
    return functional.normalize(tower.encode_text(padded))


def resized(image):
  """detectron2's shortest edge: a float scale of the other side, rounded."""
  height, width = image.shape[:2]
  scale = SIZE / min(height, width)
  sides = int(width * scale + 0.5), int(height * scale + 0.5)
  return np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR))


def masks_and_embeddings(network, image):
  """The network on an image that is padded to multiples of 32 after the
  normalisation."""
  height, width = image.shape[:2]
  mean = (123.675, 116.280, 103.530)
  # The mean colour is 0 after the normalisation; it is no integer, so floats.
  padded = np.tile(np.float32(mean), (-(-height // 32) * 32, -(-width // 32) * 32, 1))
  padded[:height, :width] = image
  masks, embeddings = predictions(network, padded[None])
  logits = torch.tensor(masks[-1])
  whole = functional.interpolate(
    logits, padded.shape[:2], mode="bilinear", align_corners=False
  )
  return whole[0, :, :height, :width].sigmoid(), torch.tensor(embeddings[-1, 0])


def clip_scores(clip, text, image, masks, settings):
  """Softmax over the classes of each crop, at 100; ones for an empty mask."""
  scores = torch.ones(len(masks), len(text))
  for number, mask in enumerate(masks > THRESHOLD):
    if mask.any():
      feature = crop_feature(clip.encode_image, settings, image, mask.numpy())
      scores[number] = (100 * text @ feature).softmax(-1)
  return scores


def zsseg(case, image):
  """Scores of all classes [C,H,W] at the image's size."""
  root, network, clip, context = case
  text = text_features(clip, context, root)
  null = functional.normalize(torch.linspace(-1, 1, 24)[None])
  seen = resized(image)
  masks, embeddings = masks_and_embeddings(network, seen)
  logits = 100 * functional.normalize(embeddings) @ torch.cat([text, null]).T
  net = logits.softmax(-1)[:, :-1]
  clips = clip_scores(clip, text, seen, masks, load_clip(str(root / "clip.pt")))
  trained = torch.tensor([float(group == "base") for group in GROUPS])
  weight = E_NOVEL
  fused = trained * net**weight * clips ** (1 - weight)
  fused = fused + (1 - trained) * net ** (1 - weight) * clips**weight
  pixels = torch.einsum("qc,qhw->chw", fused, masks)
  pixels = functional.interpolate(pixels[None], image.shape[:2], mode="bilinear")
  return pixels[0].numpy()


def test_one_checkpoint_gives_zssegs_pixels(case, tmp_path):
  """Network, prompt and a copy of CLIP in one file; all else are the published
  settings."""
  root = case[0]
  settings = {
    "clip.model": str(root / "clip.pt"),
    "segment.prompts": ("network",),
    "segment.logit_scale": 100.0,
    "propose.network": str(root / "model_final.pth"),
    "propose.size": SIZE,
    "propose.stride": 1,
    "propose.batch_size": 1,
    "regions.source": "network",
    "regions.size": SIZE,
    "regions.mask_threshold": THRESHOLD,
    "regions.e_base": E_BASE,
    "regions.e_novel": E_NOVEL,
  }
  run_job(regions_config(root, "segment", **settings), tmp_path)
  seen, equal = set(), []
  for number in range(len(SIDES)):
    image = np.asarray(Image.open(root / "images" / f"{number}.png"))
    scores = zsseg(case, image)
    found = np.asarray(Image.open(tmp_path / "labels" / "0" / f"{number}.png"))
    equal += (found == scores.argmax(axis=0)).ravel().tolist()
    masks, _ = masks_and_embeddings(case[1], resized(image))
    # 8 bits would round all masks of these pixels to 0.
    assert (masks.amax(0) < 1 / 510).double().mean() > 0.3
    seen |= set(np.unique(found))
  assert np.mean(equal) >= 0.999
  assert seen == set(range(len(NAMES)))
