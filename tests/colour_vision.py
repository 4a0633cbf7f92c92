"""The distance between colours as seen with each kind of colour vision."""

import itertools
from collections.abc import Sequence

import numpy as np

VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""Matrices on linear RGB, of Machado, Oliveira, Fernandes 2009."""

_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def least_difference(colours: Sequence[str]) -> float:
    """Return the least difference of any two colours, CIE 1976 in L*a*b*, for the worst kind of colour vision.

    Args:
        colours: as ``#rrggbb``.
    """
    encoded = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = [_lab(np.clip(linear @ np.transpose(matrix), 0, 1)) for matrix in VISION.values()]
    return min(float(np.linalg.norm(a - b)) for lab in seen for a, b in itertools.combinations(lab, 2))


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = linear @ _XYZ.T / _XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
