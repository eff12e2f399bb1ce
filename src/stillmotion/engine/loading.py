"""Networks from hub-layout folders and bare safetensors files, straight into memory, never from the network.

diffusers' classes are built on the meta device and given the file's tensors, so weights are held once
and no random numbers are drawn for them; transformers does the same by itself.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from stillmotion.errors import WeightsMissing
from stillmotion.lockfile import DATA_SUFFIXES, digest, read_lock

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"


def load_network(
    kind: Any,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    variant: str,
    weights: Path | None = None,
) -> Any:
    """Load a diffusers network from its folder; `weights` replaces the folder's own weights file."""
    config = read_json(folder / "config.json")
    with torch.device("meta"):
        network = kind.from_config(config)
    file = weights or weights_file(folder, DIFFUSERS_WEIGHTS, variant)
    try:
        tensors = load_file(file, device=str(device))
    except (OSError, SafetensorError) as error:
        raise WeightsMissing(f"{file} cannot be read as safetensors: {error}. Fetch it again.") from error
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsMissing(
            f"{file} does not fit the network of {folder / 'config.json'}: {error}"
        ) from error
    return network.eval().requires_grad_(False)


def load_tower(kind: Any, folder: Path, *, device: torch.device, dtype: torch.dtype, variant: str) -> Any:
    """Load a transformers model from its folder."""
    weights_file(folder, "model", variant)
    try:
        tower, told = kind.from_pretrained(
            folder,
            local_files_only=True,
            dtype=dtype,
            variant=variant or None,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsMissing(f"{folder} cannot be loaded: {error}. Fetch it again.") from error
    # transformers gives what a file lacks random numbers, and says so in a log that is off.
    if absent := sorted(told["missing_keys"]):
        raise WeightsMissing(f"{folder} lacks {len(absent)} tensors, {absent[0]} among them. Fetch it again.")
    return tower.eval().requires_grad_(False).to(device)


def weights_file(folder: Path, stem: str, variant: str) -> Path:
    """Find the safetensors file of a folder, with the variant in its name where the profile has one."""
    file = folder / (f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors")
    if not file.is_file():
        raise WeightsMissing(f"{file} is not there.")
    return file


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{path} cannot be read as JSON: {error}.") from error


def digest_files(folder: Path) -> str:
    """SHA-256 over the names and contents of all weights and config files under a folder.

    Files of the size their lock names are taken at its word: hashing 17 GB at every start takes a minute.
    """
    lock = read_lock(folder)
    # Not rglob: on Python 3.11 it passes over folders that are links.
    found = (Path(home, name) for home, _, names in os.walk(folder, followlinks=True) for name in names)
    files = sorted(path for path in found if path.suffix in DATA_SUFFIXES)

    def known(path: Path) -> str:
        locked = lock.get(path.relative_to(folder).as_posix())
        return locked.sha256 if locked and locked.size == path.stat().st_size else digest(path)

    with ThreadPoolExecutor() as pool:
        return combine(
            f"{p.relative_to(folder)} {d}" for p, d in zip(files, pool.map(known, files), strict=True)
        )


def combine(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
