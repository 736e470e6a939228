"""Backbones, the interface to any Detectron2 model, and pasting of its masks."""
