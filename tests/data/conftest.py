import pytest

from lambdanet.data import datasets


@pytest.fixture
def refused(tmp_path):
    """Prepare a data set that is refused: the line that says why, after a look that nothing was written."""

    def refused(wanted, source=None):
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"^") as caught:
            datasets.prepare(
                wanted, place / "clean", source=source and str(source), downloads=place / "downloads"
            )
        assert list(place.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused
