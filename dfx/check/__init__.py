"""``python -m dfx.check``: a data set as training sees it."""
