"""Windows of the photograph, so that small particles are seen at full resolution."""

import numpy as np
from detectron2.data import transforms as T


class RandomParticleCrop(T.Augmentation):
    """A window around a random particle; anywhere where there is none.

    Every particle is as likely as any other, so crowded places are seen most.
    """

    def __init__(self, height: int, width: int, shift: float = 0.5):
        """
        Args:
            height, width: of the window, in px; a smaller image is kept whole along that side.
            shift: the particle's centre lies off the window's by at most this share of the
                window's half, in each direction.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """Draw the particle and the window."""
        frame = np.array(image.shape[1::-1])
        window = np.minimum((self.width, self.height), frame)
        centers = np.zeros((0, 2)) if boxes is None else (boxes[:, :2] + boxes[:, 2:]) / 2
        centers = centers[((centers >= 0) & (centers < frame)).all(axis=1)]
        if len(centers):
            center = centers[np.random.randint(len(centers))]
            center = center + np.random.uniform(-self.shift, self.shift, 2) * window / 2
            start = np.rint(center - window / 2).clip(0, frame - window).astype(int)
        else:
            start = np.array([np.random.randint(n + 1) for n in frame - window])
        return T.CropTransform(*start.tolist(), *window.tolist(), *frame.tolist())
