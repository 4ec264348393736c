"""A random CLIP with twelve classes, and some images."""

from tests.prompt.conftest import image_features, images, world  # noqa: F401
