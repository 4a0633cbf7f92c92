"""Where the metrics of a run go: its folder, and Weights & Biases."""
