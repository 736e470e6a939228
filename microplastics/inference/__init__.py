"""Prediction on images and large tiled images."""
