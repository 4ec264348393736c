"""What the tests hold the package to, written from the papers and not from the package.

The method in torch's float64, one class and one image at a time, through HuggingFace's
CLIPModel.
"""

import math

import networkx as nx
import numpy as np
import scipy.optimize
import torch
from transformers import CLIPModel

from pomp_jax.data.wordnet import Tree


def unit(rows: np.ndarray) -> np.ndarray:
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plain_inclusion(q_N: np.ndarray, size: int) -> np.ndarray:
  """Returns min(1, t q), with the t for which they add up to `size`, in float64."""

  def excess(log_t):
    return np.minimum(1, np.exp(log_t) * q_N).sum() - size

  log_t = scipy.optimize.brentq(excess, -20, np.log(1 / q_N.min()) + 1, xtol=1e-14)
  return np.minimum(1, np.exp(log_t) * q_N)


def tree_graph(tree: Tree) -> nx.DiGraph:
  """Returns WordNet's tree, or part of it, with edges from parent to child."""
  graph = nx.DiGraph()
  graph.add_nodes_from(range(len(tree)))
  graph.add_edges_from(
    (parent, node) for node in range(len(tree)) for parent in tree.parents[node]
  )
  return graph


def plain_layout(sos, context, name, rest, position):
  """Returns the sequence of one class with the context at `end`, in `middle` or in
  `front`."""
  half = len(context) // 2
  return {
    "end": [sos, *context, *name, *rest],
    "middle": [sos, *context[:half], *name, *context[half:], *rest],
    "front": [sos, *name, *context, *rest],
  }[position]


def torch_class_feature(model: CLIPModel, context, ids, n_name: int, position: str):
  """Returns g(t_c) of one class from `ids`: name (the first n_name ids), "." and
  EOT."""
  text = model.text_model
  embed = text.embeddings.token_embedding
  sos = embed(torch.tensor(model.config.text_config.bos_token_id))
  tokens = list(embed(torch.as_tensor(ids)))
  sequence = plain_layout(
    sos, list(context), tokens[:n_name], tokens[n_name:], position
  )
  n_positions = model.config.text_config.max_position_embeddings
  # HuggingFace's tokenizer pads with EOT up to the last position.
  padding = [tokens[-1]] * (n_positions - len(sequence))
  hidden = (
    torch.stack(sequence + padding)[None] + text.embeddings.position_embedding.weight
  )
  causal = torch.full(
    (1, 1, n_positions, n_positions), -torch.inf, dtype=hidden.dtype
  ).triu(1)
  hidden = text.encoder(inputs_embeds=hidden, attention_mask=causal).last_hidden_state
  eot = text.final_layer_norm(hidden)[0, len(sequence) - 1]
  return model.text_projection(eot)


def torch_losses(
  images, positives, negatives, labels, drawn, *, scale, n_classes, correction
):
  """Returns the cross-entropy of each image of one group, and whether it is right.

  A row is an image's features, and those of its own class `labels`. Of `negatives`,
  which are the features of the classes `drawn`, each image has those that are not its
  own class.
  """
  log = {"log": math.log, "log10": math.log10, "none": lambda _: 0.0}[correction]
  losses, hits = [], []
  for image, positive, label in zip(images, positives, labels, strict=True):
    others = [row for row, c in zip(negatives, drawn, strict=True) if c != label]
    logits = scale * torch.cosine_similarity(
      image, torch.stack([positive, *others]), dim=1
    )
    hits.append(float(logits.argmax() == 0))
    if others:
      margin = log(n_classes - 1) - log(len(others))
      logits = logits + logits.new_tensor([0.0] + [margin] * len(others))
    losses.append(torch.nn.functional.cross_entropy(logits[None], torch.tensor([0])))
  return torch.stack(losses), np.array(hits)
