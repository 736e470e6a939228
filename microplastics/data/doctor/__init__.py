"""Data set doctor: problems of annotated data sets, and their fixes."""

from microplastics.data.doctor.checks import diagnose
from microplastics.data.doctor.findings import Diagnosis
from microplastics.data.doctor.fix import fix_datasets

__all__ = ["Diagnosis", "diagnose", "fix_datasets"]
