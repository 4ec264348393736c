from tests.prompt.conftest import image_features, images, world  # noqa: F401
