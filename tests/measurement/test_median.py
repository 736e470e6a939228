"""microplastics/measurement/median.py."""

import numpy as np
import pytest

from microplastics.measurement.median import median


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100, 101])
def test_it_is_that_of_numpy(count, dtype):
    values = np.random.default_rng(count).normal(50, 20, count).astype(dtype)
    before = values.copy()
    assert median(values) == float(np.median(values))
    assert np.array_equal(values, before)
    assert median(np.repeat(values, 2)) == float(np.median(np.repeat(values, 2)))
