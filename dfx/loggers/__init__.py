"""Loggers of a run's metrics: its own folder, and Weights & Biases."""
