"""Prediction and measurement runs over many images."""
