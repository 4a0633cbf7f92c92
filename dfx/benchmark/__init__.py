"""Benchmarks of gradients, speed, training steps and whole trainings."""

SAMPLE_RATE = 22050

MODES = {"frame": (1, 1024), "frames": (16, 1024), "excerpt": (1, 2 * SAMPLE_RATE)}
"""Frames of a step, and samples of a frame."""

GRADIENTS = ("exact", "finite_difference", "released", "written", "control_variate", "default")
"""``exact`` is the twin's, ``default`` that of the config, the others are overlays in configs/ablations/estimator/."""
