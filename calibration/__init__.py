"""Fitting what a model's results are off by (`python -m calibration`)."""
