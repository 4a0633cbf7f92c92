"""Runs the points of a grid and compares its arms: ``python -m dfx.sweep``; see :mod:`dfx.sweep.__main__`."""
