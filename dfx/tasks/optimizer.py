"""Adam and its schedules."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from dfx.errors import COUNTS, check_numbers


@dataclass
class OptimizerOptions:
    """How the encoder is optimized, in every stage but pretraining.

    Args:
        learning_rate: of Adam, in (0, 1]; the paper's is 1e-4.
        schedule: ``cosine`` warms up to the learning rate over the first twentieth of the stage, and decays to zero
            along half a cosine (Loshchilov and Hutter 2017); ``plateau`` is that of the paper's code: it multiplies the
            learning rate by 0.2 at the 20th, 40th, ... validation in a row that does not lower the loss by 1e-4, down
            to 1.6e-6; ``constant`` keeps it.
        patience: validations without improvement after which a stage ends (the paper: 25); by default it lasts for
            all of the trainer's epochs.
        adam_epsilon: is added to the denominator of Adam, also in pretraining; Keras, and thus the paper's code, has
            1e-7.

    Raises:
        UserError: if a number is out of its range.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    patience: int | None = None
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_numbers(vars(self), learning_rate="(0, 1]", patience=COUNTS, adam_epsilon="(0, 1]")


def make_optimizer(parameters: Iterable[nn.Parameter], options: OptimizerOptions, steps: float) -> OptimizerLRScheduler:
    """Return Adam and its schedule over ``steps``, for Lightning's ``configure_optimizers``."""
    optimizer = Adam(parameters, lr=options.learning_rate, eps=options.adam_epsilon)
    if options.schedule == "constant":
        return optimizer
    if options.schedule == "plateau":
        # Keras with a patience of 20 and a cooldown of 1: it counts the validation after a fall, torch does not.
        plateau = ReduceLROnPlateau(
            optimizer, factor=0.2, patience=19, min_lr=1.6e-6, threshold=1e-4, threshold_mode="abs"
        )
        schedule: LRSchedulerConfigType = {"scheduler": plateau, "monitor": "validation/loss", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def factor(step: int) -> float:
        warmup = min(1.0, 20 * (step + 1) / steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
