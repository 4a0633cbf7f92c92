"""Runs the points of a sweep in separate processes, here or on a Ray cluster; resumes or skips those that have run.

A sweep's folder is the ``run.folder`` of its points, so ``FOLDER/POINT`` is an ordinary run. The folder also holds
``points.json``, the options of each point, and ``logs/POINT.log``, its output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from dfx.blackbox.workers import available_cores
from dfx.evaluation import is_evaluated
from dfx.sweep.grid import Point, SweepError
from dfx.writing import write_json

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows has no such module.

MAX_JOBS = 16
"""Default limit of parallel runs; a run of configs/tube_amp.yaml takes 1.5 GB of memory."""

WandbMode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True)
class Budget:
    """Number of points that run in parallel, and number of threads of each."""

    jobs: int
    threads: int

    @classmethod
    def of(cls, points: int, jobs: int | None = None) -> Budget:
        """Divide the cores of this machine: more parallel runs use them better than more threads per run."""
        jobs = max(1, min(jobs or min(available_cores(), MAX_JOBS), points))
        return cls(jobs, max(1, available_cores() // jobs))


def register(folder: Path, points: Sequence[Point]) -> None:
    """Save the options of the points in the sweep's folder.

    Raises:
        SweepError: if the folder has a run of one of them with other options.
    """
    path = folder / "points.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise SweepError(f"{path} is damaged: remove it, if the options of the sweep are those of its runs")
    for point in points:
        # Without the interpreter, whose path depends on the machine.
        command = point.command[1:]
        if known.get(point.name, command) != command and (folder / point.name).exists():
            options = "other options than those of the sweep"
            raise SweepError(f"{folder / point.name} was run with {options}: choose another --folder, or delete it")
        known[point.name] = command
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, known)


@dataclass(frozen=True)
class Runner:
    """Runs the points of a sweep, each in a process with a number of threads, for torch and for rendering."""

    folder: Path
    sweep: str
    wandb_mode: WandbMode | None  # None: the one of the config
    threads: int

    def run(self, point: Point, started: Callable[[subprocess.Popen], None] = lambda _: None) -> str | None:
        """Run a point unless it is finished, and return one line if it fails; wait for a process that is running it."""
        log = self.log(point.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with _locked(log.with_suffix(".lock")) as inherited, log.open("ab") as file:
            if is_evaluated(self.folder / point.name):
                return None
            before = file.tell()
            command = self.command(point)
            command += [f"--model.init_args.rendering.workers={self.threads}", "--trainer.enable_progress_bar=false"]
            environment = {**os.environ, **dict.fromkeys(THREADS, str(self.threads))}
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, env=environment, pass_fds=inherited, **streams)
            started(process)
            status = process.wait()
        if is_evaluated(self.folder / point.name):
            return None
        printed = [line.strip() for line in log.read_bytes()[before:].decode(errors="replace").splitlines()]
        # The last error message or exception, else the last line.
        errors = [line for line in printed if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
        last = (errors or [line for line in printed if line] or ["it printed nothing"])[-1]
        return f"{point.name} failed, exit status {status}: {last[:300]} ({log})"

    def command(self, point: Point) -> list[str]:
        """Return the command that trains a point in its folder; it resumes the run if the folder exists."""
        resume = ["--run.resume=true"] if (self.folder / point.name).is_dir() else []
        run = [f"--run.folder={self.folder}", f"--run.name={point.name}", "--run.evaluate=true", *resume]
        mode = [f"--wandb.mode={self.wandb_mode}"] if self.wandb_mode else []
        tags = f"--wandb.tags={json.dumps([point.arm])}"
        return [*point.command, *run, *mode, f"--wandb.group={self.sweep}", tags]

    def log(self, name: str) -> Path:
        """Return the path of the output of a point."""
        return self.folder / "logs" / f"{name}.log"


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@contextmanager
def _locked(path: Path) -> Iterator[Sequence[int]]:
    """Hold a lock, together with the processes that inherit its descriptors; it is released when the last one ends."""
    if fcntl is None:
        yield ()
        return
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)


def run_here(runner: Runner, points: Sequence[Point], jobs: int) -> list[str]:
    """Run points on this machine in parallel. An interrupt ends all of them; they can be resumed."""
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="points")
    running: list[subprocess.Popen] = []
    futures = [executor.submit(runner.run, point, running.append) for point in points]
    try:
        return _follow((future.result() for future in as_completed(futures)), len(points))
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Including those that are only starting now.
        while running or not all(future.done() for future in futures):
            if running:
                running.pop().terminate()
            else:
                wait(futures, timeout=0.2)
        raise
    finally:
        executor.shutdown()


def run_on_ray(runner: Runner, points: Sequence[Point], address: str, gpus: float) -> list[str]:
    """Run points on a Ray cluster, on whose machines this folder and this Python have the same paths.

    Args:
        address: address of the cluster; ``local`` starts one on this machine.
        gpus: number of GPUs of a run, or a fraction of one.

    Raises:
        SweepError: if Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise SweepError("--ray needs Ray, which is not installed: pip install ray") from None
    here = os.getcwd()
    try:
        dashboard = False if address == "local" else None
        environment = {"env_vars": {"PYTHONPATH": here}}
        ray.init(address=address, log_to_driver=False, include_dashboard=dashboard, runtime_env=environment)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SweepError(f"the Ray cluster at {address} cannot be reached: {str(error).splitlines()[0]}") from None

    def work(point: Point) -> str | None:
        os.chdir(here)
        return runner.run(point)

    def results(waiting: list[Any]) -> Iterator[str | None]:
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            name = names[done]
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:
                yield f"{name} failed, {str(error).strip().splitlines()[-1]} ({runner.log(name)})"

    task: Any = ray.remote(num_cpus=runner.threads, num_gpus=gpus, max_retries=2)(work)
    try:
        names = {task.remote(point): point.name for point in points}
        return _follow(results(list(names)), len(points))
    finally:
        ray.shutdown()


def _follow(results: Iterable[str | None], count: int) -> list[str]:
    """Collect the failures among results, with a progress bar."""
    failures: list[str] = []
    with tqdm(total=count, desc="Sweep", unit="run", disable=not count) as bar:
        for failure in results:
            if failure:
                failures.append(failure)
                bar.write(failure)
            bar.update()
            bar.set_postfix(failed=len(failures))
    return failures
