"""Experiments built on the trainer."""
