"""Which devices there are, asked without torch: the server's process never loads it."""

import ctypes
import math
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from stillmotion.errors import UserError
from stillmotion.profiles import Profile, choose_profile, load_profile
from stillmotion.settings import Settings

#: What runners open; tests name another, which needs no weights.
ENGINE = "stillmotion.engine:open"

_DEVICE = re.compile(r"cpu|cuda:\d+")
#: Runs in a process of its own: the CUDA driver stays out of the server.
_COUNT = "import stillmotion.cli.devices as devices; print(devices.count_cuda())"
COUNT_TIMEOUT_S = 60


def choose(settings: Settings, engine: str = ENGINE) -> tuple[Profile, str, list[str]]:
    """Pick profile, the reason for it, and its devices."""
    asked = settings.devices or ["auto"]
    present = cuda_devices() if set(asked) != {"cpu"} else 0
    if engine == ENGINE:
        profile, why = choose_profile(settings.profile, present > 0, settings.data_dir)
    else:
        profile, why = load_profile("pocket"), f"films by {engine}"
    # Refuses a name that is none; what is free decides when the runner starts.
    profile.choose_memory(settings.memory_preset, free_gib=math.inf)
    if asked == ["auto"]:
        return profile, why, [f"cuda:{number}" for number in range(present)] or ["cpu"]
    known = {"cpu", *(f"cuda:{number}" for number in range(present))}
    for device in asked:
        if not _DEVICE.fullmatch(device) or device not in known:
            raise UserError(f"Device {device!r} is not here; there is {', '.join(sorted(known))}, or auto.")
    twice = {device for device in asked if asked.count(device) > 1}
    # Compiled code is kept for each device by one runner.
    if twice and (twice != {"cpu"} or settings.compile != "off"):
        raise UserError(
            f"Devices {','.join(asked)} name one twice; a CUDA device takes one runner, and so does cpu when "
            f"networks are compiled. Name each once, or cpu several times with compile off."
        )
    return profile, why, asked


def cuda_devices() -> int:
    """Count the CUDA devices that the installed torch can use."""
    if not torch_has_cuda():
        return 0
    counted = ask_python(_COUNT, timeout_s=COUNT_TIMEOUT_S)
    if counted is None:
        raise UserError(
            f"The CUDA driver did not answer within {COUNT_TIMEOUT_S} s; see what `nvidia-smi` says, or run "
            "without GPUs by `--devices cpu`."
        )
    return int(counted.stdout) if counted.returncode == 0 else 0


def ask_python(code: str, *words: str, timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """Run code in a process of its own; None when it takes longer, as with a driver that hangs."""
    command = [sys.executable, "-c", code, *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None


def torch_has_cuda() -> bool:
    """Read from torch's version file whether it was built for CUDA."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise UserError("torch is not installed; run `make setup`, or pip install torch.")
    version = Path(spec.origin).with_name("version.py")
    return re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.MULTILINE) is not None


def count_cuda() -> int:
    """Ask the CUDA driver; CUDA_VISIBLE_DEVICES counts."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
