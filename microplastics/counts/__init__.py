"""Counts per image and sample, with intervals and corrections."""
