"""Runs the points of a grid and compares them: ``python -m dfx.sweep``; see :mod:`dfx.sweep.__main__`."""
