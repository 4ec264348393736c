"""Fixtures of the core's tests that tests of the rooms share."""

from tests.clip.conftest import quick  # noqa: F401
from tests.evaluate.conftest import encoder  # noqa: F401
from tests.jobs.conftest import encoders_opened_once, one_layer, region_set  # noqa: F401
from tests.report.conftest import drawn  # noqa: F401
