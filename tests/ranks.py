"""test_tile.py in several processes."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.loops import LOOPBACK, free_port

ROOT = Path(__file__).resolve().parent.parent


def start_ranks(flags: list[str], world: int = 2) -> list[subprocess.Popen]:
    """The script in `world` processes, as torchrun starts them."""
    common = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(free_port()),
              "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, str(ROOT / "test_tile.py"), *flags],
                             env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(world)]
