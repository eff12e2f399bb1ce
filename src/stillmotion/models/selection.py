"""Which files of a diffusers repository make its pipeline: what model_index.json names, in one variant.

Repositories hold the same weights several times over, for other programs and in other number formats.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, cast

from stillmotion.errors import WeightsMissing
from stillmotion.lockfile import DATA_SUFFIXES
from stillmotion.profiles import INDEX

SHARD = re.compile(r"-\d{5}-of-\d{5}$")
#: What diffusers and transformers call the files of a network's weights.
STEMS = frozenset({"diffusion_pytorch_model", "model"})
PLAIN_SUFFIXES = DATA_SUFFIXES - {".safetensors"}
#: Weights that could run code when loaded.
UNSAFE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})


def pipeline_files(index: Any, names: Sequence[str], variant: str) -> list[str]:
    """Choose a pipeline's files, its index last, so that the index is there when all is.

    Parts without weights of the variant are taken in the plain ones, as diffusers does.
    """
    table = cast(dict[str, Any], index) if isinstance(index, dict) else {}
    # Its values are the library and the class of a part; both null where the pipeline goes without.
    parts = [part for part, named in table.items() if isinstance(named, list) and any(cast(list[Any], named))]
    if "_class_name" not in table or not parts:
        raise WeightsMissing(f"{INDEX} names no parts of a diffusers pipeline.")
    return [name for part in parts for name in _part_files(part, names, variant)] + [INDEX]


def _part_files(part: str, names: Sequence[str], variant: str) -> list[str]:
    inside = [path for path in map(PurePosixPath, names) if path.parent == PurePosixPath(part)]
    variants = {path: told for path in inside if (told := _variant(path.name)) is not None}
    indexed = [path for path in inside if ".index." in path.name]
    plain = [path for path in inside if path.suffix in PLAIN_SUFFIXES and path not in indexed]
    taken = variant if variant in variants.values() else ""
    weights = [path for path, told in variants.items() if told == taken]
    if whole := [path for path in weights if _is_whole(path.name)]:
        weights = whole
    if not weights and (variants or any(path.suffix in UNSAFE_SUFFIXES for path in inside)):
        there = ", ".join(sorted(path.name for path in variants or inside))
        cure = "set first_frame.variant to what is there" if variants else "name another repository"
        raise WeightsMissing(
            f"Part {part} has no safetensors weights{f' of variant {variant}, nor any' if variant else ''} "
            f"without a variant, but {there}; {cure}."
        )
    if not weights and not plain:
        raise WeightsMissing(f"Nothing is there of part {part}, which {INDEX} names.")
    return [str(path) for path in (*plain, *weights)]


def _variant(name: str) -> str | None:
    """Find the variant in the name of a file of weights or of their index; None for other files."""
    words = [SHARD.sub("", word) for word in name.split(".")]
    if words[0] not in STEMS or "safetensors" not in words:
        return None
    return ".".join(word for word in words[1:] if word not in {"safetensors", "index", "json"})


def _is_whole(name: str) -> bool:
    return name.endswith(".safetensors") and not any(SHARD.search(word) for word in name.split("."))
