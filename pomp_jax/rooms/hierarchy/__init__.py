"""Negatives by a hierarchy of the classes: siblings, kin, and ancestors in the loss."""
