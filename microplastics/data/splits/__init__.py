"""Splits and folds by filter or sample: groups, their assignment, the plan, what is written."""
