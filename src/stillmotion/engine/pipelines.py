"""diffusers' text-to-image pipelines, whichever class a folder's model_index.json names.

What all of them share is relied on, and nothing else: the names of the call, the order in which networks run
(`model_cpu_offload_seq`), and the progress bar, which each opens when its denoiser is about to run and
advances after every step.
"""

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from safetensors import SafetensorError
from torch import nn

from stillmotion.engine.loading import DIFFUSERS_WEIGHTS, load_network, read_json
from stillmotion.engine.memory import is_out_of_memory
from stillmotion.engine.quiet import no_advice
from stillmotion.errors import WeightsMissing
from stillmotion.profiles import INDEX, FirstFrame, Part

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # isort: skip
from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # isort: skip
from transformers.tokenization_utils_base import PreTrainedTokenizerBase  # isort: skip

#: What the engine says to every pipeline.
SAID = frozenset(
    {
        "prompt",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "generator",
        "latents",
        "output_type",
    }
)
#: How diffusers and transformers fail on files that are absent, damaged or of another shape.
BROKEN = (OSError, ValueError, SafetensorError, RuntimeError, AttributeError, TypeError, LookupError)
#: A call that takes one of these starts from another picture, or makes films.
OTHER_WORK = frozenset(
    {"mask_image", "control_image", "control_video", "video", "frames", "num_frames", "video_length"}
)


def takes(kind: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a kind of pipeline's call, by name."""
    return inspect.signature(kind.__call__).parameters


def load_pipeline(
    folder: Path, ask: FirstFrame, *, device: torch.device, dtype: torch.dtype, variant: str
) -> Any:
    """Load a pipeline's folder; raises WeightsMissing when it is not whole, or not for prompts."""
    index = read_json(folder / INDEX)
    _check_arguments(_known_kind(index.get("_class_name"), folder), ask)
    _check_vocabularies(folder)
    given: dict[str, Any] = {}
    has_unet = index.get("unet") == ["diffusers", UNet2DConditionModel.__name__]
    if (ask.unet or ask.output == "latent") and not has_unet:
        key = "unet" if ask.unet else "output"
        raise WeightsMissing(
            f"{folder} draws with no {UNet2DConditionModel.__name__}, which first_frame.{key} = "
            f"{getattr(ask, key)!r} is for; write unet = '' and output = 'image'."
        )
    if ask.output == "latent":
        given["vae"] = None
    file = _single_file(folder / "unet", variant) if not ask.unet else folder / ask.unet
    if has_unet and (ask.unet or file.is_file()):
        given["unet"] = load_network(
            UNet2DConditionModel, folder / "unet", device=device, dtype=dtype, variant=variant, weights=file
        )
    pipelines: Any = DiffusionPipeline
    try:
        with no_advice():
            pipeline = pipelines.from_pretrained(
                folder,
                local_files_only=True,
                dtype=dtype,
                # Parts without such files are loaded from their plain ones, as diffusers does.
                variant=variant if variant and any(folder.glob(f"*/*.{variant}*.safetensors")) else None,
                use_safetensors=True,
                **given,
            )
    except ImportError as error:
        raise WeightsMissing(f"{folder} needs a package that is not installed: {error}") from error
    except BROKEN as error:
        if is_out_of_memory(error):
            raise
        raise WeightsMissing(
            f"{folder} cannot be loaded: {error}. Fetch it again (`stillmotion models verify` names what is "
            "damaged), or name another pipeline under first_frame."
        ) from error
    _check_whole(pipeline, folder)
    if ask.scheduler:
        with no_advice():
            pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, **ask.scheduler)
    return pipeline.to(device)


def stages(pipeline: Any) -> dict[Part, tuple[nn.Module, ...]]:
    """A pipeline's networks by the stage they run in: before, in and after the denoiser's loop."""
    modules = {name: m for name, m in pipeline.components.items() if isinstance(m, nn.Module)}
    order, draw = _order(type(pipeline))
    tell = order[: order.index(draw[0])]

    def found(names: list[str]) -> tuple[nn.Module, ...]:
        return tuple(modules[name] for name in names if name in modules)

    rest = [name for name in modules if name not in (*tell, *draw)]
    return {"text_encoder": found(tell), "picture_unet": found(draw), "picture_vae": found(rest)}


def _order(kind: Any) -> tuple[list[str], list[str]]:
    """The order in which a kind's networks run, and those of them that denoise."""
    order = str(kind.model_cpu_offload_seq).split("->")
    return order, [name for name in order if "unet" in name or "transformer" in name]


def _known_kind(name: Any, folder: Path) -> type[DiffusionPipeline]:
    """Find a class; refuses those diffusers does not have, and those that need more than a prompt."""
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    advice = "Name another under first_frame; docs/weights.md says which work."
    if packages := cast(Any, vars(kind).get("_backends") if isinstance(kind, type) else None):
        raise WeightsMissing(f"{folder} is a {name}, which needs the packages {', '.join(packages)}.")
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise WeightsMissing(
            f"{folder / INDEX} names the pipeline {name!r}, which diffusers {diffusers.__version__} does not "
            f"have. {advice}"
        )
    call = takes(kind)
    parts = inspect.signature(kind.__init__).parameters
    needed = {
        each for each, p in call.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    } - {"self", "prompt"}
    from_text = hasattr(kind, "encode_prompt") and call.keys() >= SAID - {"guidance_scale"}
    other = OTHER_WORK & call.keys() or {"controlnet", "adapter"} & parts.keys() or not _order(kind)[1]
    if needed or not from_text or other:
        raise WeightsMissing(f"{folder} is a {name}, which draws no picture from a prompt alone. {advice}")
    if "image" in call and not _may_go_without_picture(kind):
        raise WeightsMissing(f"{folder} is a {name}, which starts from a picture. {advice}")
    return kind


def _may_go_without_picture(kind: type) -> bool:
    # Imported here: it imports every pipeline there is.
    from diffusers.pipelines import auto_pipeline

    known: Any = auto_pipeline
    return kind in known.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()


def _single_file(folder: Path, variant: str) -> Path:
    """The one file a network's weights are in: the variant's where there is one."""
    named = folder / f"{DIFFUSERS_WEIGHTS}.{variant}.safetensors"
    return named if named.is_file() else folder / f"{DIFFUSERS_WEIGHTS}.safetensors"


def _check_vocabularies(folder: Path) -> None:
    lone = [file for file in folder.glob("*/*.model") if not file.with_name("tokenizer.json").is_file()]
    if lone and find_spec("sentencepiece") is None:
        raise WeightsMissing(
            f"{lone[0]} is a vocabulary that two packages read which are not installed: "
            "pip install sentencepiece protobuf."
        )


def _check_whole(pipeline: Any, folder: Path) -> None:
    """Refuse what is not there and passed over: tensors by diffusers, vocabularies by transformers.

    A text encoder's absent tensors are seen by the digests of `models pull` alone.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            empty = [key for key, tensor in part.named_parameters() if tensor.is_meta]
            if empty:
                raise WeightsMissing(
                    f"{folder / name} lacks {len(empty)} tensors, {empty[0]} among them. Fetch it again."
                )
        if isinstance(part, PreTrainedTokenizerBase):
            files: dict[str, str] = dict(part.vocab_files_names)
            single = files.pop("tokenizer_file", "tokenizer.json")
            there = [(folder / name / file).is_file() for file in files.values()]
            if not (folder / name / single).is_file() and not (there and all(there)):
                wanted = " and ".join(files.values())
                raise WeightsMissing(f"{folder / name} lacks {single}, or {wanted}. Fetch it again.")


def _check_arguments(kind: type[DiffusionPipeline], ask: FirstFrame) -> None:
    known, name = takes(kind).keys(), kind.__name__
    if taken := ask.arguments.keys() & SAID:
        raise WeightsMissing(
            f"first_frame.arguments names {', '.join(sorted(taken))}, which the request or another key "
            "decides."
        )
    if strange := ask.arguments.keys() - known:
        raise WeightsMissing(
            f"first_frame.arguments names {', '.join(sorted(strange))}; {name} takes "
            f"{', '.join(sorted(known - SAID - {'self'}))}."
        )
    if "guidance_scale" not in known and ask.guidance_scale:
        raise WeightsMissing(
            f"{name} takes no guidance_scale; write first_frame.guidance_scale = 0, and what it takes in its "
            "place under first_frame.arguments."
        )
