import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from microplastics.data.regions_stretch import stretch_limits

DTYPES = ["uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32"]
DTYPES += ["uint64", "int64", "float64"]


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 3000),
    seed=st.integers(0, 99),
    bits=st.booleans(),
)
def test_limits_of_blocks_are_the_percentiles_of_the_whole(dtype, count, seed, bits):
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if bits:
        values = rng.integers(0, 256, count * dtype.itemsize).astype(np.uint8).view(dtype)
    else:
        values = rng.integers(0, 100, count).astype(dtype)
    with np.errstate(invalid="ignore"):
        real = values.astype(np.float64)
    real = real[np.isfinite(real)]
    found = stretch_limits(lambda: (values[i : i + 99] for i in range(0, count, 99)), dtype)
    if real.size == 0:
        assert found is None
        return
    low, high = np.quantile(real, (0.001, 0.999), method="inverted_cdf")
    assert found == ((low, high) if low != high else (real.min(), real.max()))
