"""Command lines of torchrun, for tests of several processes."""

import socket
import sys
from pathlib import Path


def torchrun(processes: int, *script: str | Path, restarts: int = 0) -> list[str | Path]:
    """The command that starts a script, with its arguments, in several processes of this machine,
    which meet at a port that nothing used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        *("--master-port", str(port), "--max-restarts", str(restarts), "--monitor-interval", ".1"),
        *script,
    ]
