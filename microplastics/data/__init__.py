"""Data sets: reading, checking, registration, mapping."""
