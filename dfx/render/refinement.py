"""Refinement of a model's parameters for one recording, towards its target or a reference.

One offset in [-1, 1] for each parameter is added to all that the model predicts, which are then clipped to [0, 1]: a
constant prediction stays constant. CMA-ES searches for the offsets, from 0 on: at the model's rate and channels, with
the treatment, and with parameters that are held over each frame. It minimizes the training loss between output and
target, or the distance of :mod:`dfx.render.reference` between output and reference, which need not be aligned.
Recordings of more than 16 s are rendered in eight excerpts of 2 s, evenly spread.
"""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dfx.audio.levels import db_to_amplitude
from dfx.audio.reading import Recording, Stream
from dfx.effects import ChainSpec
from dfx.errors import DataError, check_numbers
from dfx.losses import Loss
from dfx.render.prediction import ContextReader, Predictor, measure_gain, predict_frames
from dfx.render.reference import Reference, distance_from
from dfx.render.search import Found, Search

_EXCERPTS, _EXCERPT_SECONDS = 8, 2.0
_PATIENCE = 10
"""Generations of about ten renderings without an improvement by 0.1 %, after which the search ends."""

_SPREAD = 0.02
"""A prediction is a near start: from a wider first generation, many searches end where they began."""


Goal = Callable[[], Stream] | Reference
"""A function that opens a target, or a reference at the model's rate and channels."""


class TrainedPredictor(Predictor, Protocol):
    """A predictor with the loss that it was trained on."""

    @property
    def loss(self) -> Loss: ...


@dataclass(frozen=True)
class Refinement:
    """The result of a search, and its cost.

    Args:
        offsets: of the parameters, in [-1, 1], ``(P,)``.
        measure: the name of what was minimized.
        loss_before, loss_after: its value without and with the offsets.
        renderings: how often the compared audio was rendered.
        compared_seconds: length of this audio.
        seconds: that the search took.
    """

    offsets: np.ndarray
    measure: str
    loss_before: float
    loss_after: float
    renderings: int
    compared_seconds: float
    seconds: float

    def __str__(self) -> str:
        cost = f"{self.renderings} renderings of {self.compared_seconds:.1f} s, which took {self.seconds:.0f} s"
        return f"{self.measure} {self.loss_before:.4g} before and {self.loss_after:.4g} after {cost}"


class ShiftedPredictor:
    """A predictor whose parameters are shifted by constant offsets, ``(P,)``, and clipped to [0, 1]."""

    def __init__(self, model: Predictor, offsets: np.ndarray) -> None:
        self.chain, self.window, self.treatment, self.device = model.chain, model.window, model.treatment, model.device
        self._encode, self._offsets = model.encode, torch.from_numpy(offsets).float().to(model.device)

    def eval(self) -> "ShiftedPredictor":
        return self

    def encode(self, context: Tensor) -> Tensor:
        return (self._encode(context) + self._offsets).clamp(0, 1)


def refine(
    model: TrainedPredictor,
    open_input: Callable[[], Stream],
    goal: Goal,
    renderings: int,
    progress: bool = False,
) -> Refinement:
    """Search for the offsets that bring the output nearest to a target or a reference. Call it on the main thread.

    Args:
        model: a task in evaluation mode.
        open_input: opens the recording at its beginning; called several times.
        goal: opens the target likewise; or the reference.
        renderings: the most, rounded up to a whole generation; fewer if nothing improves.
        progress: show a bar on stderr.

    Raises:
        UserError: for a number of renderings out of its range, if the target has another length, sample rate or number
            of channels than the input, if a recording cannot be decoded, or if every setting fails.
    """
    check_numbers({"refine": renderings}, refine="2..1000000")
    began, sample_rate = time.perf_counter(), model.chain.sample_rate
    if not isinstance(goal, Reference):
        _check_same_form(open_input, goal)
    audio = _read_excerpts(model, open_input)
    search = make_search(model.chain, copy.deepcopy(model.loss).cpu(), renderings, progress=progress)
    find: Callable[..., Found]
    if isinstance(goal, Reference):
        reference = model.treatment(goal.audio, sample_rate, "target")
        measure, find = "distance from the reference", partial(search.minimize, distance_from(reference, sample_rate))
    else:
        measure, find = "training loss", partial(search, target=_read_target(model, goal, audio.places))
    mean = audio.parameters.mean(axis=(0, 1))
    around = {"start": mean, "deviations": audio.parameters - mean, "frame_samples": model.window.frame_samples}
    found = find(input=audio.input, **around)
    compared = audio.input[:, 0].numel() / sample_rate
    costs = found.evaluations, compared, time.perf_counter() - began
    return Refinement(found.parameters - mean, measure, found.first_loss, found.loss, *costs)


class _Excerpts(NamedTuple):
    """Treated input ``(excerpts, channels, samples)``, predictions ``(excerpts, frames, P)``, starts and lengths."""

    input: Tensor
    parameters: np.ndarray
    places: list[tuple[int, int]]


def _read_excerpts(model: TrainedPredictor, open_input: Callable[[], Stream]) -> _Excerpts:
    with ExitStack() as stack:

        def open_reader(measures: bool = False) -> ContextReader:
            recording = stack.enter_context(Recording(open_input()))
            return ContextReader(model, recording, model.treatment, causal=False, measures=measures)

        is_levelled = model.treatment.input_lufs is not None
        gain_db = measure_gain(open_reader(measures=True), model.treatment) if is_levelled else 0.0
        contexts, input = open_reader(), open_reader()
        inputs, parameters, places = [], [], []
        for frames, samples in _excerpts(input.samples, input.frame_samples, input.sample_rate):
            batches = predict_frames(contexts, model.treatment, frames, None, gain_db)
            parameters.append(np.concatenate([batch.parameters for batch in batches]))
            places.append((frames.start * input.frame_samples, samples))
            inputs.append(input.read(*places[-1]) * db_to_amplitude(gain_db))
        return _Excerpts(torch.stack(inputs), np.stack(parameters), places)


def _read_target(
    model: TrainedPredictor, open_target: Callable[[], Stream], places: Sequence[tuple[int, int]]
) -> Tensor:
    with Recording(open_target()) as recording:
        reader = ContextReader(model, recording, model.treatment, causal=False)
        return torch.stack([reader.read(*place) for place in places])


def make_search(chain: ChainSpec, loss: Loss, renderings: int, seed: int = 0, progress: bool | None = None) -> Search:
    """Return a search that begins close to its start and ends when nothing improves; see :class:`Search`."""
    return Search(chain, loss, renderings, seed, _PATIENCE, _SPREAD, progress)


def _check_same_form(open_input: Callable[[], Stream], open_target: Callable[[], Stream]) -> None:
    with closing(open_input()) as input, closing(open_target()) as target:
        forms = [
            f"{stream.samples} samples at {stream.sample_rate} Hz in {stream.channels} channels"
            for stream in (input, target)
        ]
    if forms[0] != forms[1]:
        raise DataError(f"{target.name} has {forms[1]}: a target must have the form of {input.name}, {forms[0]}")


def _excerpts(samples: int, frame_samples: int, sample_rate: int) -> list[tuple[range, int]]:
    """Return the frames and the samples of each excerpt; all excerpts have one length."""
    count = max(1, round(_EXCERPT_SECONDS * sample_rate / frame_samples))
    if samples <= _EXCERPTS * count * frame_samples:
        return [(range(-(-samples // frame_samples)), samples)]
    starts = np.linspace(0, samples // frame_samples - count, _EXCERPTS).astype(int).tolist()
    return [(range(start, start + count), count * frame_samples) for start in starts]
