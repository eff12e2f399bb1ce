"""A disk that takes no more, for one process: any user can make one and mend it, on any Linux machine."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_end_at(size: int, pid: int = 0) -> Iterator[None]:
    """Have this or another process fail to write beyond `size` bytes of any file.

    The kernel refuses with EFBIG, and SQLite says `disk I/O error`; what was written below `size` stays, so
    that a write may also fail half way.
    """
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
