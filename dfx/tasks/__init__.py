"""One LightningModule for each task, and what they share: three tasks are the paper's."""

from dfx.tasks.checkpoint import CheckpointError, read_checkpoint
from dfx.tasks.loading import TASKS, load_task
from dfx.tasks.mastering import Mastering
from dfx.tasks.nonspeech import NonSpeech
from dfx.tasks.style_transfer import StyleTransfer
from dfx.tasks.task import Task
from dfx.tasks.tube_amp import TubeAmp

__all__ = [
    "TASKS",
    "CheckpointError",
    "Mastering",
    "NonSpeech",
    "StyleTransfer",
    "Task",
    "TubeAmp",
    "load_task",
    "read_checkpoint",
]
