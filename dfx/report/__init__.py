"""The listening page of an evaluation, to listen to, look at and rate the output of a model and its baselines.

    python -m dfx.report runs/tube_amp/evaluation

writes ``report.html`` again from the folder written by ``evaluate.py``. The page is one self-contained file, audio
included, and opens from disk. It shows one file at a time: input, target, output and baselines as synchronized players,
their waveforms and spectrograms, the model's automation, and the metrics. The blind test hides the names and shuffles
the tracks anew for each file and listener. Listeners rate each track against the target from 0 to 100, with a hidden
target and a low-passed anchor among the tracks (after ITU-R BS.1534, MUSHRA), and download the ratings as CSV. Audio
beyond the size limit of one page continues in ``report_2.html`` and so on, which are linked to each other.
"""

PAGE_SECONDS = 60.0
PAGE_MEGABYTES = 40.0
