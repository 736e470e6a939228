"""Leak-free splits and folds of a data set."""
