"""Writing a file whole: who reads it, whenever the writer is killed, finds what was there before or all of the new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the place, bring it to the disk, and rename; a file that was there keeps its permissions.

    Raises OSError, and what was there stays. A writer that is killed may leave a `.NAME.PID.part` behind.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
