"""Accuracy by task, method and budget: data sets, metrics, the loop, and the table."""
