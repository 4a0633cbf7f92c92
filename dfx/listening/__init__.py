"""Listening tests after MUSHRA (ITU-R BS.1534), as in the paper: a set for webMUSHRA, and the ratings of all listeners.

    python -m dfx.listening export runs/tube_amp/evaluation webMUSHRA
    python -m dfx.listening pool ratings/*.csv --output ratings

``export`` writes the outputs of an evaluation into the folder of webMUSHRA (github.com/audiolabs/webMUSHRA), a server
for tests with many listeners. ``pool`` averages its results, those of the blind test of ``report.html``, or both.
"""
