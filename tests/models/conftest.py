import pytest

from lambdanet import backends


@pytest.fixture(autouse=True)
def reference():
    """The networks as they are written; tests/backends compares the faster ones with them."""
    with backends.forced(backends.REFERENCE):
        yield
