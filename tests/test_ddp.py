"""One run in several processes: what each of them does, and that together they do what one would."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import pytest
import torch

ROOT = Path(__file__).parent.parent


def launch(commands: List[List[object]], environments: List[Dict[str, str]], status: int = 0) -> List[str]:
    """Runs commands side by side; what each said, on both channels."""
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1", **more},
        )
        for command, more in zip(commands, environments)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in running]
    assert all(process.returncode == status for process in running), "\n".join(said)
    return said


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun(*command: object) -> List[object]:
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), *command]


@pytest.mark.parametrize("backbone, loss", [("mobilenet_v2", "mrstft"), ("conv", "paper")])
def test_two_processes_arrive_at_the_gradients_of_one_with_the_same_batch(make_pairs, tmp_path, backbone, loss):
    pairs = make_pairs(20)
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = ["tests/several_ranks.py", pairs, folder, backbone, loss, processes]
        launch([torchrun(*command) if processes == 2 else command], [{}])
    one, first, second = (torch.load(tmp_path / path) for path in ("1/rank_0.pt", "2/rank_0.pt", "2/rank_1.pt"))
    for alone, a, b in zip(one["heard"], first["heard"], second["heard"]):
        assert torch.equal(torch.cat([a, b]), alone)
    assert all(torch.equal(a, b) for a, b in zip(one["directions"], second["directions"]))
    for alone, a, b in zip(one["gradients"], first["gradients"], second["gradients"]):
        assert all(torch.equal(a[name], b[name]) for name in a)
        flat = [torch.cat([gradient[name].flatten() for name in alone]) for gradient in (alone, a)]
        assert (flat[0] - flat[1]).norm() < 1e-3 * flat[0].norm()
    assert first["metrics"] == second["metrics"]
    for part in ("metrics", "buffers"):
        assert one[part].keys() == first[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(first[part][name], value, rtol=1e-3, atol=1e-5)
