"""A few training steps, which tests/test_ddp.py runs in one process and in several; their gradients are saved.

python tests/several_ranks.py PAIRS FOLDER PROCESSES
"""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from dfx.blackbox import GradientOptions
from dfx.datasets import PairedAudio
from dfx.encoder import EncoderOptions
from dfx.losses import LossOptions
from dfx.tasks import TubeAmp
from dfx.tasks.optimizer import OptimizerOptions


class Recorder(pl.Callback):
    """Records the inputs of a rank, the directions, and the gradients of all ranks."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []
        self.directions: list[torch.Tensor] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, model: Any, batch: dict[str, torch.Tensor], _: int) -> None:
        self.inputs.append(batch["input"].clone())

    def on_before_optimizer_step(self, trainer: pl.Trainer, model: Any, optimizer: Any) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        self.directions.append(model.effect_layer._perturbation.state_dict()["held"].clone())


def main(pairs: str, folder: str, processes: int) -> None:
    pl.seed_everything(0, verbose=False)
    model = TubeAmp(
        [
            {"effect": "pedalboard:Compressor", "train": {"threshold_db": None, "ratio": None}},
            {"effect": "pedalboard:Distortion", "train": {"drive_db": [0, 30]}},
        ],
        context_samples=4096,
        frame_samples=1024,
        frames_per_step=2,
        encoder=EncoderOptions(width=0.1, start_at_defaults=False, dropout=0.5),
        loss=LossOptions(fft_sizes=[512, 256]),
        # Weights hardly change, so that the gradients of later steps can be compared.
        optimizer=OptimizerOptions(1e-7, "constant"),
        gradient=GradientOptions(control_variate="regression", residual_weight=0.5),
    )
    data = PairedAudio(pairs, 22050, 1, model.window, batch_size=4, excerpt_seconds=0.2, check_audio=False)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if processes > 1 else "auto",
        devices=processes,
        max_epochs=1,
        limit_train_batches=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[recorder],
        # Batch normalization over a few rows amplifies rounding errors of single precision.
        precision="64-true",
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data)
    metrics = {name: value.clone() for name, value in trainer.callback_metrics.items()}
    buffers = {name: value for name, value in model.encoder.named_buffers() if "running" in name}
    lists = {name: getattr(recorder, name) for name in ("inputs", "directions", "gradients")}
    torch.save({**lists, "metrics": metrics, "buffers": buffers}, f"{folder}/rank_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]))
