"""POMP: prompt pre-training over twenty thousand classes, in JAX."""

# pyproject.toml reads the version from here.
__version__ = "0.1.0"
