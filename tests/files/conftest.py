"""Object stores for the tests of files."""

import pytest

from tests.support import stores
from tests.train.conftest import encoders_opened_once  # noqa: F401


@pytest.fixture(scope="module")
def both_stores():
  with stores.running(*stores.SCHEMES) as found:
    yield found


@pytest.fixture(params=stores.SCHEMES)
def store(request, both_stores):
  found = both_stores[request.param]
  found.recover()
  return found
