"""Merging of detections across tiles: the rules of docs/stitching.md.

``matching`` holds the rule itself: when two windows show the same particle. ``clustering`` decides
which fragments belong together, ``merging`` makes a particle of them, and ``stitcher`` runs the
steps; its tests are those of the rule.
"""
