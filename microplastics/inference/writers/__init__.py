"""Output formats: files of one image and of a whole run, see docs/outputs.md."""

from microplastics.inference.writers.base import Format, ImageResult, ImageSource
from microplastics.inference.writers.names import output_name, output_names, printable
from microplastics.inference.writers.parts import Part, read_part, write_part
from microplastics.inference.writers.registry import ANNOTATIONS_FILE, FORMATS
from microplastics.inference.writers.run import RunFiles, check_formats, write_image, write_run
from microplastics.inference.writers.tables import write_csv, write_parquet

__all__ = [
    "ANNOTATIONS_FILE",
    "FORMATS",
    "Format",
    "ImageResult",
    "ImageSource",
    "Part",
    "RunFiles",
    "check_formats",
    "output_name",
    "output_names",
    "printable",
    "read_part",
    "write_csv",
    "write_image",
    "write_parquet",
    "write_part",
    "write_run",
]
