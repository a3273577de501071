"""Calibration: numbers of a method that are found for a model, on pictures and questions without answers."""
