"""float32 weights to float16, once, so that they are neither stored nor loaded at twice their size."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from stillmotion.errors import WeightsMissing

Array = np.ndarray[Any, np.dtype[Any]]


def cast_to_half(source: Path, target: Path) -> None:
    """Write `source` with its float32 tensors as float16; others keep their type."""
    tensors: dict[str, Array] = {}
    opener: Any = safe_open  # it has no types
    try:
        with opener(source, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensors[name] = half(file.get_tensor(name), f"{source.name}: {name}")
    except SafetensorError as error:
        raise WeightsMissing(f"{source} cannot be read as safetensors: {error}.") from error
    save_file(tensors, target)


def half(tensor: Array, name: str) -> Array:
    """Round float32 to float16; raises WeightsMissing when a value does not fit."""
    if tensor.dtype != np.float32:
        return tensor
    with np.errstate(over="ignore"):
        cast = tensor.astype(np.float16)
    if not np.isfinite(cast).all():
        raise WeightsMissing(f"{name} holds values that float16 cannot; these weights are damaged.")
    return cast
