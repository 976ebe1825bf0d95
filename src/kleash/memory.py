"""Peak memory of a stage."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def reset_peak() -> None:
    """Reset the peak, where the system can (Linux; elsewhere the peak is that of the whole process)."""
    import torch  # imported here, so that modules that only read run folders start without it

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the resident size (man 5 proc)
        except OSError:
            return  # a container may forbid it


def peak_memory() -> dict[str, int]:
    """Peak bytes resident on the host, and allocated on the GPU if there is one, since `reset_peak`."""
    import torch

    peak = {"host": _resident()}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak


def available() -> int:
    """Bytes of the host's memory that a new object may take: what is free, within the limit of a container; 0 where the
    system does not say.
    """
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/meminfo").read_text().split("\n")
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
    limit, current = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return min(free, int(limit.read_text()) - int(current.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def _resident() -> int:
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().split("\n"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum if sys.platform == "darwin" else maximum * 1024
