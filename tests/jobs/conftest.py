"""Fixtures of the trainings' tests."""

from tests.train.conftest import encoders_opened_once  # noqa: F401
