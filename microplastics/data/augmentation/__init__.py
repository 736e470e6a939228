"""Training augmentations."""
