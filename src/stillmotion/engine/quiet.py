"""No network, no progress bars, no libraries' advice in request logs, no spinning threads."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager


def hush() -> None:
    """Silence diffusers and transformers and keep them offline; call it before torch's first import."""
    # Read by huggingface_hub at import; weights come from disk alone.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    # Read by OpenMP when torch loads. While its threads wait for each other they look this often, for a
    # fraction of a millisecond, before they sleep. If they sleep at once, two are no quicker than one; if
    # they look for ever, a step on busy cores takes seconds (docs/performance.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


@contextmanager
def no_advice() -> Generator[None]:
    """Silence deprecations inside diffusers' pipelines and schedulers; we cannot mend their calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
