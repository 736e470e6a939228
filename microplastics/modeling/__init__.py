"""What is put beside and into Detectron2 models."""
