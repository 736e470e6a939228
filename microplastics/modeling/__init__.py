"""The interface to Detectron2 models."""
