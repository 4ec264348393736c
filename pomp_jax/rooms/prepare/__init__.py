"""Data sets that TFDS lacks, written as ArrayRecord with TFDS's metadata, without TensorFlow."""
