"""CoOp's protocol, on which the baselines were published: field -> value.

CLIP ViT-B/16, one of CoOp's eleven data sets with its own split, 16 images a class,
accuracy on all test images. `data.root` and `data.dataset` are the user's to give.
"""

FEW_SHOT = {
  "clip.model": "openai/clip-vit-base-patch16",
  "data.source": "coop",
  "data.shots": 16,
  "eval.images": 0,
}
# Of all trainers: Dassl's random_resized_crop and random_flip.
AUGMENTED = {"data.augment": "crop_flip"}
# Training on the first half of the classes; evaluation on either half.
BASE_TO_NEW = {"data.classes": "base"}
