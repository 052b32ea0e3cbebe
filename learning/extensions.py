"""DeepSpeed's compiled extension for collectives between CPU ranks of one machine.

torch compiles it at first use, under a lock file that a killed process leaves behind, and for which
every later process then waits without end. A lock of our own, which dies with its holder, lets the
leftover be told from one that is in use.
"""

from __future__ import annotations

import fcntl
from pathlib import Path


def load_communication(folder: Path) -> None:
    """Compiles (once, about a minute) and loads the extension, kept in `folder`.

    `TORCH_EXTENSIONS_DIR` must be `folder`. Processes of one machine take turns.
    """
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gavel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / builder.name / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
