"""Output formats: files of one image and of a whole run, see docs/outputs.md."""

from microplastics.writers.base import (
    Format,
    ImageResult,
    ImageSource,
    output_names,
    printable,
)
from microplastics.writers.parts import Part, read_part, write_part
from microplastics.writers.registry import (
    ANNOTATIONS_FILE,
    FORMATS,
    RunFiles,
    check_formats,
    write_image,
    write_run,
)
from microplastics.writers.tables import write_csv, write_parquet

__all__ = [
    "ANNOTATIONS_FILE",
    "FORMATS",
    "Format",
    "ImageResult",
    "ImageSource",
    "Part",
    "RunFiles",
    "check_formats",
    "output_names",
    "printable",
    "read_part",
    "write_csv",
    "write_image",
    "write_parquet",
    "write_part",
    "write_run",
]
