"""Comparison of a trained model with baselines on a test split."""

from pathlib import Path


def is_evaluated(run: Path) -> bool:
    """Return whether a run has been trained and evaluated, or all of its folds: the last file is the page."""
    return (run / "evaluation" / "report.html").is_file()
