"""How much memory there is: the machine's, or what a container or a limit leaves of it."""

import contextlib
import os
from pathlib import Path


def cpu_memory() -> float | None:
    """Return this machine's memory in bytes, or what a container or a limit leaves of it; None: nobody says."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    if (limit := address_space()) is not None:
        found.append(limit)
    return float(min(found)) if found else None


def address_space() -> int | None:
    """Return how many bytes of addresses this process may have (ulimit -v); None: any number."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return None if limit == resource.RLIM_INFINITY else limit
    return None
