"""Merging of detections across tiles."""
