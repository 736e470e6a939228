"""Annotation formats of other tools: readers give streams of images, writers take them.

``registry`` finds the reader; ``records`` is what readers give; ``canonical`` writes the COCO data
set that everything else reads. ``supervision`` and ``datumaro`` are not used: they bring scipy, av
and requests, or pandas, pyarrow, lxml and a second OpenCV, hold a data set in memory, and do not
say what they leave out.
"""

from microplastics.data.formats.registry import READERS, detect, open_dataset, reader

__all__ = ["READERS", "detect", "open_dataset", "reader"]
