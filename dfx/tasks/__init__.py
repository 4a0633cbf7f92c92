"""One LightningModule for each task of the paper, and what they share."""

from dfx.tasks.checkpoint import CheckpointError, read_checkpoint
from dfx.tasks.loading import TASKS, build_task, load_task
from dfx.tasks.mastering import Mastering
from dfx.tasks.nonspeech import NonSpeech
from dfx.tasks.optimizer import OptimizerOptions
from dfx.tasks.stages import StageOptions
from dfx.tasks.task import Task
from dfx.tasks.tube_amp import TubeAmp

__all__ = [
    "TASKS",
    "CheckpointError",
    "Mastering",
    "NonSpeech",
    "OptimizerOptions",
    "StageOptions",
    "Task",
    "TubeAmp",
    "build_task",
    "load_task",
    "read_checkpoint",
]
