"""Model components and the interface to Detectron2 models."""
