"""The architecture that the name of a CLIP tells."""

import re


def architecture(clip_model: str) -> str | None:
  """Architecture that a CLIP's name tells, such as vit-b-16 or rn50x4, or None."""
  name = clip_model.lower()
  if vit := re.search(r"vit[-_/]?([blhg])[a-z]*[-_/]?(?:patch)?[-_/]?(\d\d)(?!\d)", name):
    return f"vit-{vit[1]}-{vit[2]}"
  resnet = re.search(r"(?:rn|resnet)[-_]?(\d+(?:x\d+)?)", name)
  return f"rn{resnet[1]}" if resnet else None
