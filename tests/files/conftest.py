"""Object stores for the tests of files."""

import pytest

from tests.support import stores


@pytest.fixture(scope="module")
def both_stores():
  with stores.running(*stores.SCHEMES) as found:
    yield found


@pytest.fixture(params=stores.SCHEMES)
def store(request, both_stores):
  found = both_stores[request.param]
  found.recover()
  return found
