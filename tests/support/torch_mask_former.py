"""ZSSeg's network in torch, of other projects' modules, and its checkpoint as
detectron2 saves it.

Decoders are HuggingFace's MaskFormer, bottlenecks are torchvision's, with dilations set
as in DeepLab, and the stem is written here. Names in the checkpoint are facts of
ZSSeg's code.
"""

import collections
from collections.abc import Mapping
import re
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation
from transformers import ResNetConfig as TransformersResNetConfig
from transformers.models.maskformer.modeling_maskformer import (
  MaskformerMLPPredictionHead,
)

SIZES = {"layers": (1, 2, 1, 3), "width": 8, "stem": 16, "dim": 64, "mask_dim": 32}
SIZES |= {"n_queries": 7, "n_layers": 3, "n_heads": 8, "mlp": 48, "embedding_mlp": 40}
SIZES |= {"embedding": 24}
PUBLISHED = {
  "layers": (3, 4, 23, 3),
  "width": 64,
  "stem": 128,
  "dim": 256,
  "mask_dim": 256,
}
PUBLISHED |= {
  "n_queries": 100,
  "n_layers": 6,
  "n_heads": 8,
  "mlp": 2048,
  "embedding_mlp": 1024,
}
PUBLISHED |= {"embedding": 512}
MEAN, DEVIATION = (123.675, 116.280, 103.530), (58.395, 57.120, 57.375)


class TorchBackbone(nn.Module):
  """DeepLab's stem before torchvision's stages; the last stage's 3x3 convolutions
  are dilated."""

  def __init__(self, layers, width, stem):
    super().__init__()
    half = stem // 2
    self.stem = nn.ModuleDict()
    for i, (n_in, n_out) in enumerate([(3, half), (half, half), (half, stem)], 1):
      stride = 2 if i == 1 else 1
      self.stem[f"conv{i}"] = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
      self.stem[f"bn{i}"] = FrozenBatchNorm2d(n_out)
    with torch.device("meta"):
      net = ResNet(Bottleneck, [1] * 4, norm_layer=FrozenBatchNorm2d)
    net.inplanes = stem
    self.stages = nn.ModuleList(
      net._make_layer(Bottleneck, width * 2**i, n_blocks, stride=1 if i == 0 else 2)
      for i, n_blocks in enumerate(layers)
    )
    for block, dilation in zip(self.stages[-1], (1, 2, 4), strict=True):
      block.conv2.dilation = block.conv2.padding = (dilation, dilation)

  def forward(self, pixels):
    x = pixels
    for i in (1, 2, 3):
      x = torch.relu(self.stem[f"bn{i}"](self.stem[f"conv{i}"](x)))
    x = nn.functional.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage in self.stages:
      x = stage(x)
      maps.append(x)
    return SimpleNamespace(feature_maps=maps)


def torch_mask_former(sizes: dict = SIZES) -> MaskFormerForInstanceSegmentation:
  """Builds the network in evaluation mode; its class logits are embeddings."""
  channels = [4 * sizes["width"] * 2**i for i in range(4)]
  backbone = TransformersResNetConfig(
    embedding_size=8,
    hidden_sizes=channels,
    depths=[1] * 4,
    out_features=[f"stage{i}" for i in range(1, 5)],
  )
  decoder = DetrConfig(
    d_model=sizes["dim"],
    decoder_layers=sizes["n_layers"],
    decoder_attention_heads=sizes["n_heads"],
    decoder_ffn_dim=sizes["mlp"],
    num_queries=sizes["n_queries"],
  )
  config = MaskFormerConfig(
    fpn_feature_size=sizes["dim"],
    mask_feature_size=sizes["mask_dim"],
    backbone_config=backbone,
    decoder_config=decoder.to_dict(),
  )
  model = MaskFormerForInstanceSegmentation(config)
  pixel_module = model.model.pixel_level_module
  pixel_module.encoder = TorchBackbone(sizes["layers"], sizes["width"], sizes["stem"])
  model.class_predictor = MaskformerMLPPredictionHead(
    sizes["dim"], sizes["embedding_mlp"], sizes["embedding"], num_layers=2
  )
  return model.eval()


def torch_pixels(images: np.ndarray) -> torch.Tensor:
  """Normalises uint8 images, channels last, as detectron2 does with ImageNet's
  statistics."""
  pixels = (torch.tensor(images).float() - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
  return pixels.permute(0, 3, 1, 2)


def layer_outputs(model, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
  """Masks [J,B,Q,h,w] and embeddings [J,B,Q,E] after each decoder layer.

  The model's own outputs are those of the last layer. As in ZSSeg, the decoder's last
  norm is applied to the output of every layer.
  """
  decoder, states = model.model.transformer_module.decoder, []

  def keep(module, inputs, output):
    states.append(output[0] if isinstance(output, tuple) else output)

  hooks = [layer.register_forward_hook(keep) for layer in decoder.layers]
  out = model(torch_pixels(images))
  queries = decoder.layernorm(torch.stack(states))
  embeddings = model.class_predictor(queries)
  features = out.pixel_decoder_last_hidden_state
  masks = torch.einsum("jbqc,bchw->jbqhw", model.mask_embedder(queries), features)
  for hook in hooks:
    hook.remove()
  torch.testing.assert_close(masks[-1], out.masks_queries_logits)
  torch.testing.assert_close(embeddings[-1], out.class_queries_logits)
  return masks, embeddings


def predictions(model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`layer_outputs` as arrays."""
  with torch.no_grad():
    masks, embeddings = layer_outputs(model, images)
  return masks.numpy(), embeddings.numpy()


_NAMES = (
  (
    r"^model\.pixel_level_module\.encoder\.stages\.(\d)",
    lambda m: f"backbone.res{int(m[1]) + 2}",
  ),
  (r"^model\.pixel_level_module\.encoder", "backbone"),
  (r"^backbone(.*)\.bn(\d)\.", r"backbone\1.conv\2.norm."),
  (r"downsample\.0", "shortcut"),
  (r"downsample\.1", "shortcut.norm"),
  (r"^model\.pixel_level_module\.decoder\.(fpn\.)?", "sem_seg_head.pixel_decoder."),
  (r"mask_projection", "mask_features"),
  (r"decoder\.stem\.", "decoder.layer_4."),
  (r"layers\.(\d)\.proj\.", lambda m: f"adapter_{3 - int(m[1])}."),
  (r"layers\.(\d)\.block\.", lambda m: f"layer_{3 - int(m[1])}."),
  (r"((adapter|layer)_\d)\.0", r"\1"),
  (r"((adapter|layer)_\d)\.1", r"\1.norm"),
  (
    r"^model\.transformer_module\.decoder",
    "sem_seg_head.predictor.transformer.decoder",
  ),
  (r"^model\.transformer_module", "sem_seg_head.predictor"),
  (r"queries_embedder", "query_embed"),
  (r"input_projection", "input_proj"),
  (r"decoder\.layernorm", "decoder.norm"),
  (r"self_attn_layer_norm", "norm1"),
  (r"encoder_attn_layer_norm", "norm2"),
  (r"final_layer_norm", "norm3"),
  (r"encoder_attn", "multihead_attn"),
  # transformers 5 has an MLP inside the layer, and another name for the attention's
  # output.
  (r"(\.mlp)?\.fc(\d)", r".linear\2"),
  (r"\.o_proj", ".out_proj"),
  (
    r"^(mask|class)_(embedder|predictor)\.(\d)\.0",
    r"sem_seg_head.predictor.\1_embed.layers.\3",
  ),
)


def detectron2_state(model: nn.Module) -> dict[str, torch.Tensor]:
  """The state dict under ZSSeg's names; query, key and value are stacked as torch
  has them."""
  state = collections.OrderedDict()
  for name, tensor in model.state_dict().items():
    if name.startswith("criterion."):
      continue
    for pattern, new in _NAMES:
      name = re.sub(pattern, new, name)
    if match := re.fullmatch(r"(.*_attn)\.([qkv])_proj\.(\w+)", name):
      state.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = tensor
    else:
      state[name] = tensor
  for name, value in state.items():
    if isinstance(value, dict):
      state[name] = torch.cat([value[key] for key in "qkv"])
  return state


def zsseg_state(
  model: nn.Module, clip: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
  """Everything in a checkpoint's "model": the network, its criterion, and the CLIP
  adapter.

  `clip` is the state dict of the adapter's CLIP, in OpenAI's layout.
  """
  width = model.class_predictor.layers[-1].layers[0].out_features
  adapter = {
    "non_object_embedding": torch.linspace(-1, 1, width)[None],
    "prompt_learner.ctx": torch.linspace(0, 1, 4 * 8).reshape(4, 8),
    "prompt_learner.start_signal": torch.ones(1, 8),
    "pixel_mean": torch.zeros(1, 3, 1, 1),
  } | {f"clip_model.{name}": tensor for name, tensor in (clip or {}).items()}
  state = detectron2_state(model) | {"criterion.empty_weight": torch.ones(16)}
  return state | {f"clip_adapter.{name}": tensor for name, tensor in adapter.items()}
