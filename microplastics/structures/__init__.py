"""Structures that Detectron2 lacks."""
