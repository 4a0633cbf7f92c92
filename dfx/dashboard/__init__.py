"""Dashboards of runs: in Weights & Biases, and as one HTML file; see ``python -m dfx.dashboard --help``."""
