"""Comparison of a trained model with baselines on a test split."""
