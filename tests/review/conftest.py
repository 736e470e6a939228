"""Reviews of a small data set."""

import pytest
from review_support import write_annotations

from microplastics.review import Review


@pytest.fixture(scope="session")
def annotations(tmp_path_factory):
    return write_annotations(tmp_path_factory.mktemp("review"))


@pytest.fixture
def reopen(annotations, tmp_path):
    """Open the review in ``tmp_path``, by default."""

    def opened(output="out", **how):
        images = str(annotations.parent / "images")
        return Review.open(annotations, images=images, output=tmp_path / output, **how)

    return opened


@pytest.fixture
def review(reopen):
    with reopen() as opened:
        yield opened
