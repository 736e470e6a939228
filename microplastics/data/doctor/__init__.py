"""The data set doctor: everything wrong in an annotated data set, shown and mended."""

from microplastics.data.doctor.checks import diagnose
from microplastics.data.doctor.findings import Diagnosis
from microplastics.data.doctor.fix import fix_datasets

__all__ = ["Diagnosis", "diagnose", "fix_datasets"]
