"""Ours against plain Detectron2, in one run, taking turns."""
