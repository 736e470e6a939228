"""Shared utilities: errors, files, processes."""
