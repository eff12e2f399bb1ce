"""Write the trained parts into the package, in the hub's layout: `python -m training.export`.

Every file is written beside its place and renamed, so that a reader never sees half of one.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from training import captions, codec, motion, picture, text, train_text, vision
from training.loop import WEIGHTS, averaged


def filled(part: str, model: torch.nn.Module) -> torch.nn.Module:
    """A model in its averaged weights, as half precision."""
    model.load_state_dict(averaged(part))
    return model.half()


def write_parts(folder: Path) -> None:
    vae = filled("codec", codec.build())
    vae.save_pretrained(folder / "vae")
    # The class adds this key by itself when it loads, and complains to find it.
    edit_json(folder / "vae" / "config.json", block_out_channels=None)
    filled("video", motion.build()).save_pretrained(folder / "unet")
    eye = filled("vision", train_text.Tower(vision.build(), vision.WIDTH)).model
    eye.save_pretrained(folder / "image_encoder")
    # Stored as halves, but to be computed in single precision unless the caller asks otherwise.
    edit_json(folder / "image_encoder" / "config.json", dtype="float32")
    drawer = folder / "text_to_image"
    tokenizer = text.CLIPTokenizer.from_pretrained(train_text.FOLDER / "tokenizer")
    tokenizer.save_pretrained(drawer / "tokenizer")
    reader = filled("text", train_text.Tower(text.build(tokenizer), text.HIDDEN)).model
    reader.save_pretrained(drawer / "text_encoder")
    edit_json(drawer / "text_encoder" / "config.json", dtype="float32")
    filled("picture", picture.build()).save_pretrained(drawer / "unet")
    picture.scheduler().save_pretrained(drawer / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (drawer / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    words = {
        kind: {name: sorted(set(said)) for name, said in table.items()}
        for kind, table in captions.WORDS.items()
    }
    (folder / "vocabulary.json").write_text(json.dumps(words, indent=1) + "\n")


def edit_json(path: Path, **changes: str | None) -> None:
    """Change keys of a JSON file; None takes a key out."""
    told = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")


def move_in(source: Path, target: Path) -> None:
    for made in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / made.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(place.name + ".new")
        shutil.copyfile(made, fresh)
        fresh.replace(place)


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--to", type=Path, default=WEIGHTS)
    told = ask.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_parts(Path(temporary))
        move_in(Path(temporary), told.to)
    size = sum(p.stat().st_size for p in told.to.rglob("*") if p.is_file())
    print(f"{told.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
