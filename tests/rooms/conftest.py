"""Fixtures of the core's tests that tests of the rooms share."""

from tests.clip.conftest import quick  # noqa: F401
from tests.evaluate.conftest import encoder  # noqa: F401
from tests.report.conftest import drawn  # noqa: F401
from tests.train.conftest import encoders_opened_once  # noqa: F401
