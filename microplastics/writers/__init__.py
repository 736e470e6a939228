"""Output formats: files of one image and of a whole run, see docs/outputs.md."""
