"""How sure an answer is, and how deep; none of the names; classifiers for others."""
