"""Runs points: each as a process of its own, here or on a Ray cluster, and every one only as far as it is missing.

A sweep's folder is the ``run.folder`` of its points, so ``FOLDER/POINT`` is a run as any other. Beside them lie
``points.json``, what each point was run with, and ``logs/POINT.log``, what it said.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dfx.blackbox.workers import available_cores
from dfx.sweep.grid import Point, SweepError
from dfx.writing import write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MOST_JOBS = 16
"""By default; a run of configs/tube_amp.yaml takes 1.5 GB of memory."""


@dataclass(frozen=True)
class Budget:
    """How many points run at once, and how many threads each of them has."""

    jobs: int
    threads: int

    @classmethod
    def of(cls, points: int, jobs: int | None = None) -> Budget:
        """All cores of this machine: more runs at once use them better than more threads for each."""
        jobs = max(1, min(jobs or min(available_cores(), MOST_JOBS), points))
        return cls(jobs, max(1, available_cores() // jobs))


@dataclass(frozen=True)
class Failure:
    """A point that did not end as it should."""

    point: str
    message: str
    log: Path


def is_finished(folder: Path, point: Point) -> bool:
    """Whether a point's run has been trained and evaluated: the metrics are the last that it writes."""
    try:
        json.loads((folder / point.name / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def full_command(folder: Path, sweep: str, point: Point, wandb_mode: str) -> list[str]:
    """What trains a point in its folder, from where it is: ``--run.resume`` where there is something to resume."""
    return [
        *point.command,
        f"--run.folder={folder}",
        f"--run.name={point.name}",
        "--run.evaluate=true",
        *(["--run.resume=true"] if (folder / point.name).is_dir() else []),
        f"--wandb.mode={wandb_mode}",
        f"--wandb.group={sweep}",
        f"--wandb.tags={json.dumps([point.arm])}",
    ]


def register(folder: Path, points: Sequence[Point]) -> None:
    """Notes what the points of a folder are run with.

    Raises:
        SweepError: if one of them was begun with other options.
    """
    path = folder / "points.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for point in points:
        # Without the interpreter, which may be another on another machine.
        command = point.command[1:]
        if known.get(point.name, command) != command and (folder / point.name).exists():
            raise SweepError(
                f"{folder / point.name} was run with other options than the sweep now has: choose another --folder, "
                "or delete it"
            )
        known[point.name] = command
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


@dataclass(frozen=True)
class Runner:
    """Runs a point in a process.

    Args:
        folder: of the sweep.
        sweep: its name.
        wandb_mode: of the runs.
        threads: of a run: torch's, and those that render.
    """

    folder: Path
    sweep: str
    wandb_mode: str
    threads: int

    def run(self, point: Point, started: Callable[[subprocess.Popen], None] = lambda _: None) -> Failure | None:
        """Runs a point to its end, unless it has been; one that another process is running is waited for."""
        log = self.folder / "logs" / f"{point.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with _locked(log.with_suffix(".lock")) as inherited, log.open("ab") as file:
            if is_finished(self.folder, point):
                return None
            before = file.tell()
            command = full_command(self.folder, self.sweep, point, self.wandb_mode)
            command += [f"--model.init_args.rendering.workers={self.threads}", "--trainer.enable_progress_bar=false"]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, pass_fds=inherited,
                env={**os.environ, **dict.fromkeys(_THREADS, str(self.threads))},
            )  # fmt: skip
            started(process)
            status = process.wait()
        if is_finished(self.folder, point):
            return None
        said = [line.strip() for line in log.read_bytes()[before:].decode(errors="replace").splitlines()]
        # What ends a run on purpose, or else by an exception, or else the last it said.
        errors = [line for line in said if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
        last = (errors or [line for line in said if line] or ["it said nothing"])[-1]
        return Failure(point.name, f"exit status {status}: {last[:300]}", log)


_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@contextmanager
def _locked(path: Path) -> Iterator[Sequence[int]]:
    """Holds a lock, also for what inherits it: it is free when the last process that has it ends, however it ends."""
    if fcntl is None:
        yield ()
        return
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)


def run_here(runner: Runner, points: Sequence[Point], jobs: int) -> list[Failure]:
    """Runs points on this machine, several at once. An interrupt or SIGTERM ends them all, and they can be resumed."""
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="points")
    running: list[subprocess.Popen] = []

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    futures = [executor.submit(runner.run, point, running.append) for point in points]
    try:
        return _follow((future.result() for future in as_completed(futures)), len(points))
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Also those that begin only now.
        while running or not all(future.done() for future in futures):
            if running:
                running.pop().terminate()
            else:
                wait(futures, timeout=0.2)
        raise
    finally:
        executor.shutdown()
        signal.signal(signal.SIGTERM, before)


def run_on_ray(runner: Runner, points: Sequence[Point], address: str, gpus: float) -> list[Failure]:
    """Runs points on a Ray cluster, whose machines see this folder, and have this Python, under the same paths.

    Args:
        address: of the cluster; ``local`` starts one on this machine.
        gpus: that a run takes, or a share of one.

    Raises:
        SweepError: without Ray, or if there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise SweepError("--ray needs Ray, which is not installed: pip install ray") from None
    here = os.getcwd()
    try:
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False if address == "local" else None,
            runtime_env={"env_vars": {"PYTHONPATH": here}},
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SweepError(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from None

    def work(point: Point) -> Failure | None:
        os.chdir(here)
        return runner.run(point)

    def results(waiting: list[Any]) -> Iterator[Failure | None]:
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            name = names[done]
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:
                yield Failure(name, str(error).strip().splitlines()[-1], runner.folder / "logs" / f"{name}.log")

    task: Callable[..., Any] = ray.remote(num_cpus=runner.threads, num_gpus=gpus, max_retries=2)(work)
    try:
        names = {task.remote(point): point.name for point in points}
        return _follow(results(list(names)), len(points))
    finally:
        ray.shutdown()


def _follow(results: Iterable[Failure | None], count: int) -> list[Failure]:
    """The failures among results, with a progress bar."""
    failures: list[Failure] = []
    with tqdm(total=count, desc="Sweep", unit="run") as bar:
        for failure in results:
            if failure:
                failures.append(failure)
                bar.write(f"{failure.point} failed, {failure.message} ({failure.log})")
            bar.update()
            bar.set_postfix(failed=len(failures))
    return failures
