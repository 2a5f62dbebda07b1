import helpers
import pytest

from lambdanet.data import datasets


@pytest.fixture
def refused(tmp_path):
    """Prepare a data set that is refused: the line that says why, after a look that nothing was written."""

    def refused(wanted, source=None):
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        of = {"source": source and str(source), "downloads": place / "downloads"}
        said = helpers.refusal(datasets.prepare, wanted, place / "clean", **of)
        assert list(place.iterdir()) == []
        return said

    return refused
