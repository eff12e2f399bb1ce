"""How films are made: weights, samplers, autoencoder, first frame. The only room that imports torch.

It needs floor 0 and `video.py` alone, so it runs on a bare GPU machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillmotion.engine import quiet

quiet.hush()

from stillmotion.engine.engine import Engine  # noqa: E402
from stillmotion.profiles import load_profile  # noqa: E402

__all__ = ["Engine", "open"]


def open(settings: Mapping[str, Any]) -> Engine:
    """Load and warm the weights of `profile` on `device`; `data_dir` holds weights that are not bundled."""
    profile = load_profile(settings["profile"])
    return Engine(profile, profile.weights_dir(Path(settings["data_dir"])), settings["device"])
