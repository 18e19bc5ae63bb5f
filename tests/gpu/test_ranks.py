"""One nccl rank of DDP and of FSDP2, as many as one GPU has room for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_one_nccl_rank_ends_at_the_exact_sparsity(engine, tmp_path, record_property):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("one_rank.py")), engine, str(tmp_path)],
        env={**os.environ, **rank, **place, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record_property("printed", done.stdout.strip()[-200:])
