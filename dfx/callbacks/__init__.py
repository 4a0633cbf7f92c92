"""Callbacks of a training run: checkpoints, health, excerpts, progress and the files of the run's folder."""
