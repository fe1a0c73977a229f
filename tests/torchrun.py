"""Command lines of torchrun, for tests of several processes."""

import random
import socket
import sys
from pathlib import Path


def torchrun(processes: int, *script: str | Path, restarts: int = 0) -> list[str | Path]:
    """The command that starts a script, with its arguments, in several processes of this machine,
    which meet at a port that nothing uses."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *("--master-port", str(free_port()), "--max-restarts", str(restarts)),
        *("--monitor-interval", ".1", *script),
    ]


def free_port() -> int:
    """A port below those that systems hand out themselves: none is taken by chance in between."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("a hundred ports from 20000 to 30000 are all in use")
