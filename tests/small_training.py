"""A small task, its data and its trainer, for tests that train a few steps."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from dfx.blackbox import GradientOptions
from dfx.datasets import PairedAudio
from dfx.effects import EffectSpec
from dfx.encoder import EncoderOptions
from dfx.losses import LossOptions
from dfx.tasks import Task, TubeAmp
from dfx.tasks.optimizer import OptimizerOptions
from tests.known_effects import SAMPLE_RATE

EFFECTS = [
    EffectSpec("pedalboard:Compressor", train={"threshold_db": None, "ratio": None}),
    EffectSpec("pedalboard:Distortion", train={"drive_db": (0, 30)}),
]
STEPS_IN_EPOCH = 6


def task(effects=EFFECTS, kind=TubeAmp, redraw="excerpt", dropout=0.0, backbone="mobilenet_v2", **options) -> Task:
    pl.seed_everything(0, verbose=False)
    return kind(
        effects,
        **{"context_samples": 4096, "frame_samples": 1024, **options},
        encoder=EncoderOptions(backbone, 0.1, dropout=dropout),
        loss=LossOptions(fft_sizes=[512, 256]),
        gradient=GradientOptions(redraw=redraw),
        optimizer=OptimizerOptions(learning_rate=1e-3),
    )


def data(root, model: Task, **options) -> PairedAudio:
    options = {"batch_size": 4, "excerpt_seconds": 0.15, "check_audio": False, **options}
    return PairedAudio(str(root), SAMPLE_RATE, 1, model.window, **options)


def trainer(folder=None, epochs=2, callbacks=(), **options) -> pl.Trainer:
    saves = any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks)
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=STEPS_IN_EPOCH,
        logger=False,
        enable_checkpointing=saves,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )


def weights(model: Task) -> torch.Tensor:
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])
