"""Writes Detic's boxes, objectness and stage embeddings as a folder of regions
(docs/reference/formats.md).

Run in Detic's folder, with its own environment (torch, detectron2):

  python dump_detic.py --config-file configs/X.yaml --dataset lvis_v1_val --clip ViT-B/16 \
    --out regions MODEL.WEIGHTS X.pth

With --masks also the class-agnostic masks of all boxes, pasted into the image at 0.5,
for mask AP: about half a second and 200 kB an image more.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch


def dump(
  model, loader, out: pathlib.Path, clip: str, made_by: str, trained, masks=False
) -> None:
  """Runs a Detic model over a detectron2 test loader of one image a batch."""
  heads, found = model.roi_heads, {}
  stages, last = [p.cls_score for p in heads.box_predictor], heads.box_predictor[-1]
  if any(stage.use_bias for stage in stages) or not heads.mult_proposal_score:
    sys.exit("only models without USE_BIAS and with MULT_PROPOSAL_SCORE can be dumped")
  for k, stage in enumerate(stages):
    stage.linear.register_forward_hook(lambda m, inputs, x, k=k: found.update({k: x}))
  predict_boxes, forward_box = last.predict_boxes, heads._forward_box

  def keep_boxes(predictions, proposals):
    found["boxes"] = predict_boxes(predictions, proposals)
    return found["boxes"]

  def keep_scores(features, proposals, *rest, **more):
    field = "scores" if proposals[0].has("scores") else "objectness_logits"
    found.update(
      scores=proposals[0].get(field), size=proposals[0].image_size, features=features
    )
    return forward_box(features, proposals, *rest, **more)

  last.predict_boxes, heads._forward_box = keep_boxes, keep_scores
  width = stages[0].linear.out_features
  embeddings = {
    "clip_model": clip,
    "stages": len(stages),
    "width": width,
    "activation": "sigmoid",
  }
  embeddings |= {
    "scale": stages[0].norm_temperature,
    "null": None,
    "trained_classes": trained,
  }
  header = {"format_version": 1, "made_by": made_by, "embeddings": embeddings}
  out.mkdir(parents=True, exist_ok=True)
  (out / "regions.json").write_text(json.dumps(header, indent=2))
  for batch in loader:
    (item,) = batch
    with torch.no_grad():
      model.eval()(batch)
    ends = torch.tensor([*found["size"]][::-1] * 2)
    seen = found["boxes"][0].float().cpu().clamp(min=0).minimum(ends)
    boxes = seen / ends * torch.tensor([item["width"], item["height"]] * 2)
    own = {"key": str(item["image_id"])}
    if masks:
      pasted = pasted_masks(heads, found, seen, boxes, (item["height"], item["width"]))
      own["masks"] = 255 * pasted.cpu().numpy().astype(np.uint8)
    unit = [
      torch.nn.functional.normalize(found[k].float(), dim=1) for k in range(len(stages))
    ]
    np.savez_compressed(
      out / f"{item['image_id']}.npz",
      boxes=boxes.numpy().astype(np.float32),
      objectness=found["scores"].float().cpu().numpy().clip(0, 1),
      embeddings=torch.stack(unit, dim=1).half().cpu().numpy(),
      **own,
    )


def pasted_masks(heads, found, seen, boxes, sides):
  """Masks [R,H,W] of boxes in the network's input (`seen`) at those in the original
  image."""
  from detectron2.layers import paste_masks_in_image
  from detectron2.structures import Boxes, Instances

  given, device = Instances(found["size"]), found["boxes"][0].device
  given.pred_boxes = Boxes(seen.to(device))
  given.pred_classes = torch.zeros(len(seen), dtype=torch.long, device=device)
  with torch.no_grad():
    (given,) = heads.forward_with_given_boxes(found["features"], [given])
  return paste_masks_in_image(given.pred_masks[:, 0].float(), boxes.to(device), sides)


def main() -> None:
  """Builds the model and the loader by Detic's own code."""
  sys.path[:0] = [".", "third_party/CenterNet2"]
  from centernet.config import add_centernet_config
  from detectron2.checkpoint import DetectionCheckpointer
  from detectron2.config import get_cfg
  from detectron2.data import build_detection_test_loader
  from detectron2.modeling import build_model
  from detic.config import add_detic_config

  parser = argparse.ArgumentParser()
  for flag in ("--config-file", "--dataset", "--clip", "--out"):
    parser.add_argument(flag, required=True)
  parser.add_argument(
    "--trained", help="text file of the classes trained on, one a line"
  )
  parser.add_argument("--masks", action="store_true", help="masks too, for mask AP")
  parser.add_argument("opts", nargs=argparse.REMAINDER)
  flags = parser.parse_args()
  cfg = get_cfg()
  add_centernet_config(cfg)
  add_detic_config(cfg)
  cfg.merge_from_file(flags.config_file)
  cfg.merge_from_list(flags.opts)
  model = build_model(cfg)
  DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
  trained = (
    pathlib.Path(flags.trained).read_text().splitlines() if flags.trained else []
  )
  loader = build_detection_test_loader(cfg, flags.dataset)
  out, made_by = pathlib.Path(flags.out), pathlib.Path(cfg.MODEL.WEIGHTS).name
  dump(model, loader, out, flags.clip, made_by, trained, flags.masks)


if __name__ == "__main__":
  main()
