import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.data.regions_shrink import shrink

RNG = np.random.default_rng(0)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 60), width=st.integers(1, 60))
def test_shrunk_px_are_the_means_of_what_they_cover(data, height, width):
    image = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    out_width, out_height = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    down, across = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    blocks = (
        (x, y, image[y : y + down, x : x + across])
        for y in range(0, height, down)
        for x in range(0, width, across)
    )
    shrunk = shrink(blocks, (width, height), (out_width, out_height))
    # Each px repeated until those of the result hold whole numbers of them.
    fine = image.repeat(out_height, axis=0).repeat(out_width, axis=1).astype(float)
    means = fine.reshape(out_height, height, out_width, width, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - means).max() <= 0.5001
