"""A CLIP of the core's tests."""

from tests.clip.conftest import quick  # noqa: F401
