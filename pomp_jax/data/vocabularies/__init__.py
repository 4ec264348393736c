"""Named class lists, and a user's own: names, WordNet ids and prompt templates.

The lists are the files beside this one; README.md says where each comes from.
"""

from pomp_jax.data.vocabularies.class_list import (
  CLASS_LISTS,
  TEMPLATES,
  ClassList,
  load_class_list,
  load_templates,
)
from pomp_jax.data.vocabularies.tfds_labels import TfdsLabels, load_tfds_labels

__all__ = [
  "CLASS_LISTS",
  "TEMPLATES",
  "ClassList",
  "TfdsLabels",
  "load_class_list",
  "load_templates",
  "load_tfds_labels",
]
