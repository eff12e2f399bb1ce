"""How films are made: weights, samplers, autoencoder, first frame. The only room that imports torch.

It needs floor 0 and `video.py` alone, so it runs on a bare GPU machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillmotion.engine import quiet

quiet.hush()

from stillmotion.engine.compiling import Compilation  # noqa: E402
from stillmotion.engine.engine import Engine  # noqa: E402
from stillmotion.profiles import load_profile  # noqa: E402

__all__ = ["Engine", "open"]


def open(settings: Mapping[str, Any]) -> Engine:
    """Load and warm the weights of `profile` on `device`; `data_dir` holds weights that are not bundled."""
    data_dir = Path(settings["data_dir"])
    profile = load_profile(settings["profile"], data_dir)
    mode, device = settings["compile"], settings["device"]
    # Each device has its own: two could measure, and so choose, differently.
    compiled = Compilation(mode, data_dir / "compiled" / device.replace(":", "-"))
    folder = profile.weights_dir(data_dir)
    return Engine(profile, folder, device, None if mode == "off" else compiled, settings["memory_preset"])
