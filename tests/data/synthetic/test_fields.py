import numpy as np
import pytest

from microplastics.data.synthetic.fields import plane_noise


@pytest.mark.parametrize("cell", [1.0, 2.3, 40.0, 900.0])
def test_windows_of_a_plane_agree_where_they_overlap(cell):
    whole = plane_noise(7, -150, 2**15, (200, 300), cell)
    part = plane_noise(7, -150 + 130, 2**15 + 60, (90, 110), cell)
    assert np.allclose(whole[60:150, 130:240], part, atol=1e-5)
    assert not np.allclose(plane_noise(8, -150, 2**15, (200, 300), cell), whole, atol=0.1)


def test_a_plane_is_noise_of_unit_size_without_a_trend():
    noise = plane_noise(3, -2000, 500, (1000, 1000), 4.0)
    assert noise.dtype == np.float32 and abs(noise.mean()) < 0.02
    assert 0.6 < noise.std() < 1.0
    blocks = noise.reshape(10, 100, 10, 100).mean((1, 3))
    assert blocks.std() < 0.1
    near, far = (np.corrcoef(noise[:, :-d].ravel(), noise[:, d:].ravel())[0, 1] for d in (1, 12))
    assert near > 0.8 and abs(far) < 0.03
