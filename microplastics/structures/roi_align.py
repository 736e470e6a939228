"""ROIAlign of a binary crop that lies in a larger image, as mask targets need it."""

from dataclasses import dataclass

import numpy as np

_F = np.float32


@dataclass(frozen=True)
class _Axis:
    """Where the samples of each bin fall along one axis, and how they weigh their two pixels."""

    low: np.ndarray  # (M, grid) int64, pixel index in the crop, may lie outside of it
    high: np.ndarray
    low_weight: np.ndarray  # (M, grid) float32
    high_weight: np.ndarray
    length: int  # of the crop along this axis

    def matrix(self) -> np.ndarray:
        """Give the (M, length) float32 weights of each pixel in each bin."""
        bins, grid = self.low.shape
        index = np.concatenate([self.low, self.high], axis=1)
        weight = np.concatenate([self.low_weight, self.high_weight], axis=1)
        inside = (index >= 0) & (index < self.length)
        index = index + np.arange(bins)[:, None] * self.length
        flat = np.bincount(index[inside], weight[inside], minlength=bins * self.length)
        return flat.reshape(bins, self.length).astype(_F)


def roi_align_binary(
    crop: np.ndarray,
    offset: tuple[int, int],
    image_size: tuple[int, int],
    boxes: np.ndarray,
    output_size: int,
) -> np.ndarray:
    """Crop a mask by boxes and resize it, exactly as ROIAlign of the whole image's mask does.

    The same as ``ROIAlign((M, M), 1.0, 0, aligned=True)(mask, boxes) >= 0.5`` of Detectron2 (He
    et al. 2017, "Mask R-CNN"; torchvision's CPU kernel), bit for bit. The mean over a bin's
    samples is two matrix products, whose rounding differs from the kernel's in the last places;
    the few bins too close to one half to tell are summed again in the kernel's own order.

    Args:
        crop: (h, w) bool mask; zero everywhere else in the image.
        offset: x0 and y0 of the crop in image pixels.
        image_size: height and width of the image in pixels.
        boxes: (K, 4) float32 x0, y0, x1, y1 in image pixels.
        output_size: M.

    Returns:
        (K, M, M) bool array.
    """
    result = np.zeros((len(boxes), output_size, output_size), dtype=bool)
    if not crop.size:
        return result
    values = crop.astype(_F)
    start = boxes[:, :2] - _F(0.5)
    bin_size = ((boxes[:, 2:] - _F(0.5)) - start) / _F(output_size)
    grid = np.ceil(bin_size).astype(np.int64)
    for index in np.flatnonzero((grid > 0).all(axis=1)):
        x, y = (
            _axis(
                start[index, axis],
                bin_size[index, axis],
                int(grid[index, axis]),
                output_size,
                (image_size[1 - axis], offset[axis], crop.shape[1 - axis]),
            )
            for axis in (0, 1)
        )
        count = int(grid[index].prod())
        mean = y.matrix() @ values @ x.matrix().T / _F(count)
        result[index] = mean >= _F(0.5)
        # Bound of the rounding error of a sum of that many float32 terms.
        doubt = (count + sum(crop.shape)) * np.finfo(_F).eps
        rows, columns = np.nonzero(np.abs(mean - _F(0.5)) <= doubt)
        if len(rows):
            result[index, rows, columns] = _kernel_mean(values, y, x, rows, columns) >= _F(0.5)
    return result


def _axis(
    start: np.float32, bin_size: np.float32, grid: int, bins: int, extent: tuple[int, int, int]
) -> _Axis:
    """Place the samples along one axis; ``extent`` is image length, crop offset, crop length."""
    image_length, offset, length = extent
    step = (np.arange(grid, dtype=_F) + _F(0.5)) * bin_size / _F(grid)
    sample = (start + np.arange(bins, dtype=_F) * bin_size)[:, None] + step
    outside = (sample < -1) | (sample > image_length)
    sample = np.maximum(sample, _F(0))
    low = sample.astype(np.int64)
    last = low >= image_length - 1
    low[last] = image_length - 1
    high = np.where(last, low, low + 1)
    fraction = np.where(last, _F(0), sample - low.astype(_F))
    low_weight = _F(1) - fraction
    fraction[outside] = 0
    low_weight[outside] = 0
    return _Axis(low - offset, high - offset, low_weight, fraction, length)


def _kernel_mean(
    values: np.ndarray, y: _Axis, x: _Axis, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Sum the samples of some bins one after another in float32, as torchvision's kernel does."""
    shape = (len(rows), y.low.shape[1], x.low.shape[1])
    terms = np.zeros(shape, dtype=_F)
    for y_index, y_weight in ((y.low, y.low_weight), (y.high, y.high_weight)):
        for x_index, x_weight in ((x.low, x.low_weight), (x.high, x.high_weight)):
            row, column = y_index[rows][:, :, None], x_index[columns][:, None, :]
            inside = (row >= 0) & (row < y.length) & (column >= 0) & (column < x.length)
            pixel = values[row.clip(0, y.length - 1), column.clip(0, x.length - 1)] * inside
            terms += y_weight[rows][:, :, None] * x_weight[columns][:, None, :] * pixel
    terms = terms.reshape(len(rows), -1)
    return np.add.accumulate(terms, axis=1)[:, -1] / _F(terms.shape[1])
