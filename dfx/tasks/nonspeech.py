"""Removal of breaths, clicks and pops from speech (the paper, section 3.2)."""

from __future__ import annotations

from dfx.tasks.task import Task


class NonSpeech(Task):
    """Makes a gate close on what is not speech: raw takes in, the same takes with silent pauses out."""
