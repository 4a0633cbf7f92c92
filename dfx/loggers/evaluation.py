"""An evaluation as a run of its own in Weights & Biases."""

import json
from pathlib import Path
from typing import Literal

from dfx.evaluation.results import read_means
from dfx.loggers.wandb import WandbRun

_FILES_WITH_AUDIO = 4


def log_evaluation(folder: Path, mode: Literal["offline", "online"], project: str = "dfx") -> None:
    """Log the folder of :func:`~dfx.evaluation.evaluate.evaluate`: means, differences, and audio of its first files.

    Metrics have the names of a training run: ``test/METHOD/METRIC``, and ``difference/METHOD/METRIC`` for the model
    minus another method. The table ``tables/evaluation`` has their intervals.

    Args:
        folder: of the evaluation, to which an offline record is written.
        mode: ``offline``, or ``online``, which falls back to ``offline`` without a login.
        project: in Weights & Biases.
    """
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    results = read_means(folder)
    config = {name: about[name] for name in ("task", "interpolation", "methods")}
    run = WandbRun(folder, mode == "offline", project=project, job_type="evaluate", tags=[about["task"]], config=config)
    averages = [
        (kind, method, name, mean)
        for kind, means in {"test": results, "difference": results.differences}.items()
        for method, of in means.items()
        for name, mean in of.items()
    ]
    run.log_metrics({f"{kind}/{method}/{name}": float(mean) for kind, method, name, mean in averages}, step=0)
    rows = [{"kind": kind, "method": method, "metric": name, **mean.as_dict()} for kind, method, name, mean in averages]
    audio = {
        f"audio/{file['stem']}": [
            {"data_or_path": str(folder / "audio" / f"{file['stem']}_{track}.flac"), "caption": track}
            for track in dict.fromkeys(["input", *about["methods"], "target"])
        ]
        for file in about["files"][:_FILES_WITH_AUDIO]
    }
    run.log_media(0, audio, {}, {"tables/evaluation": rows})
    run.finalize("success")
    run.experiment.finish()
