"""First frames from a repository named whole: what is fetched of it, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stillmotion.errors import UserError, WeightsMissing
from stillmotion.lockfile import read_lock
from stillmotion.models.folder import import_from, plan_pull, pull
from stillmotion.models.hub import Hub
from stillmotion.models.selection import pipeline_files
from stillmotion.profiles import Profile, load_profile, own_profile
from tests.engine import tiny_pictures
from tests.engine.test_models import flaws, pull_all
from tests.engine.test_picture_pipelines import load
from tests.hub import LocalHub

FLUX = "black-forest/flux"
#: Beside a pipeline in the hub's repositories: the same weights for other programs.
JUNK = (
    "flux1.safetensors",
    "README.md",
    "ae.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.non_ema.safetensors",
    "vae/flax_model.msgpack",
    "vae_encoder/model.onnx",
    "text_encoder_2/pytorch_model.bin.index.json",
)


def own(data_dir: Path, **more: str) -> Profile:
    told = {
        "repository": f'"{FLUX}"',
        "licence": '"Apache-2.0"',
        "folder": '"flux"',
        "steps": "4",
        "guidance_scale": "0",
        "output": '"image"',
    }
    file = own_profile("svd", data_dir)
    file.parent.mkdir(exist_ok=True, parents=True)
    lines = "\n".join(f"{key} = {value}" for key, value in (told | more).items())
    file.write_text(f"sources = []\n[first_frame]\n{lines}\narguments = {{ max_sequence_length = 16 }}\n")
    return load_profile("svd", data_dir)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    tiny_pictures.write("flux", root / FLUX, max_shard_size="100KB")
    for name in JUNK:
        file = root / FLUX / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"other")
    return root


def missing(profile: Profile, data_dir: Path) -> list[str]:
    return [part for part in profile.missing_parts(data_dir) if part.startswith("flux/")]


def test_a_repository_is_pulled_verified_and_loaded_without_a_list_of_its_files(
    hub: LocalHub, repositories: Path, tmp_path: Path
) -> None:
    profile = own(tmp_path)
    folder = profile.weights_dir(tmp_path)
    assert missing(profile, tmp_path) == ["flux/model_index.json"]
    assert [flaw.path for flaw in flaws(profile, folder)] == ["flux/model_index.json"]
    pull_all(profile, folder, hub)
    here = {path.relative_to(folder / "flux").as_posix() for path in (folder / "flux").rglob("*.*")}
    there = {path.relative_to(repositories / FLUX).as_posix() for path in (repositories / FLUX).rglob("*.*")}
    assert there - here == set(JUNK)
    assert here <= there
    assert set(read_lock(folder)) == {f"flux/{name}" for name in here}
    assert (flaws(profile, folder), missing(profile, tmp_path)) == ([], [])
    assert type(load("flux", folder / "flux")).__name__ == "FluxPipeline"


def test_a_file_that_is_lost_or_changed_is_found_and_comes_again(hub: LocalHub, tmp_path: Path) -> None:
    profile = own(tmp_path)
    folder = profile.weights_dir(tmp_path)
    pull_all(profile, folder, hub)
    lost, changed = "flux/tokenizer_2/tokenizer.json", "flux/vae/config.json"
    (folder / lost).unlink()
    (folder / changed).write_text("{}")
    assert {flaw.path for flaw in flaws(profile, folder)} == {lost, changed}
    assert missing(profile, tmp_path) == [lost]
    (folder / changed).unlink()
    pull_all(profile, folder, hub)
    assert flaws(profile, folder) == []


def test_an_interrupted_pull_leaves_the_index_missing(hub: LocalHub, tmp_path: Path) -> None:
    profile = own(tmp_path)
    folder, client = profile.weights_dir(tmp_path), Hub(None, hub.url)
    _, wanted = plan_pull(profile, folder, client)
    pull(wanted[: len(wanted) // 2], folder, client, list[str]().append)
    assert missing(profile, tmp_path) == ["flux/model_index.json"]


def test_another_pipeline_is_not_mixed_into_the_folder(hub: LocalHub, tmp_path: Path) -> None:
    profile = own(tmp_path)
    folder = profile.weights_dir(tmp_path)
    pull_all(profile, folder, hub)
    other = own(tmp_path, repository='"someone/else"')
    with pytest.raises(UserError, match=r"holds files of black-forest/flux, .*name another folder"):
        plan_pull(other, folder, Hub(None, hub.url))
    shutil.rmtree(folder / "flux")
    with pytest.raises(WeightsMissing, match="shows no repository someone/else"):
        plan_pull(other, folder, Hub(None, hub.url))


@pytest.mark.parametrize("layout", ["owner", "name", "cache"])
def test_a_repository_on_disk_is_imported(layout: str, repositories: Path, tmp_path: Path) -> None:
    home = {"owner": FLUX, "name": "flux", "cache": "models--black-forest--flux/snapshots/abc"}[layout]
    shutil.copytree(repositories / FLUX, tmp_path / "origin" / home)
    profile = own(tmp_path)
    folder = profile.weights_dir(tmp_path)
    import_from(profile, folder, tmp_path / "origin", list[str]().append)
    assert (flaws(profile, folder), missing(profile, tmp_path)) == ([], [])
    assert not [name for name in JUNK if (folder / "flux" / name).exists()]


def test_an_import_that_lacks_a_shard_or_the_repository_takes_nothing(
    repositories: Path, tmp_path: Path
) -> None:
    profile = own(tmp_path)
    folder = profile.weights_dir(tmp_path)
    shutil.copytree(repositories / FLUX, tmp_path / "origin" / FLUX)
    shard = sorted((tmp_path / "origin" / FLUX / "transformer").glob("*-of-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(WeightsMissing, match=rf"lacks {FLUX}/transformer/{shard.name}\."):
        import_from(profile, folder, tmp_path / "origin", list[str]().append)
    with pytest.raises(WeightsMissing, match=rf"lacks {FLUX}/model_index\.json"):
        import_from(profile, folder, repositories / "nowhere", list[str]().append)
    assert not folder.exists()


@pytest.mark.parametrize(
    "shards",
    [
        '{"a": "../../victim.json"}',
        '{"a": "../../victim.safetensors"}',
        '{"a": "code.py"}',
        '{"a": 3}',
        "[]",
    ],
)
def test_an_index_that_names_anything_but_shards_beside_it_is_refused(
    shards: str, repositories: Path, tmp_path: Path
) -> None:
    profile = own(tmp_path)
    folder = profile.weights_dir(tmp_path)
    home = tmp_path / "origin" / FLUX
    shutil.copytree(repositories / FLUX, home)
    index = next((home / "transformer").glob("*.safetensors.index.json"))
    index.write_text(f'{{"weight_map": {shards}}}')
    for name in ("victim.json", "victim.safetensors"):
        (home.parent / name).write_text("theirs")
    (home / "transformer" / "code.py").touch()
    with pytest.raises(WeightsMissing, match=r"names .* no shard beside it|An index of .* cannot be read"):
        import_from(profile, folder, tmp_path / "origin", list[str]().append)
    assert not folder.exists()


INDEX: dict[str, Any] = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0",
    "force_zeros": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "image_encoder": [None, None],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
}
ALWAYS = [
    "scheduler/scheduler_config.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "transformer/config.json",
]
SHARDED = [
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
]
SHARDED_FP16 = [
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
]
OLDER_FP16 = [
    "text_encoder/model-00001-of-00002.fp16.safetensors",
    "text_encoder/model-00002-of-00002.fp16.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
]
SINGLE = ["transformer/diffusion_pytorch_model.safetensors"]
SINGLE_FP16 = ["transformer/diffusion_pytorch_model.fp16.safetensors"]
OTHERS = [
    "model_index.json",
    "image_encoder/config.json",
    "transformer_2/config.json",
    "transformer/lora.safetensors",
    "scheduler/old/a.json",
]


@pytest.mark.parametrize(
    ("variant", "there", "taken"),
    [
        ("", SHARDED + SINGLE, SHARDED + SINGLE),
        ("fp16", SHARDED + SINGLE, SHARDED + SINGLE),
        ("fp16", SHARDED + SHARDED_FP16 + SINGLE + SINGLE_FP16, SHARDED_FP16 + SINGLE_FP16),
        ("fp16", SHARDED + OLDER_FP16 + SINGLE, OLDER_FP16 + SINGLE),
        ("bf16", SHARDED + SHARDED_FP16 + SINGLE + SINGLE_FP16, SHARDED + SINGLE),
        (
            "",
            [*SHARDED, "text_encoder/model.safetensors", *SINGLE],
            ["text_encoder/model.safetensors", *SINGLE],
        ),
    ],
)
def test_one_variant_of_every_part_is_chosen(variant: str, there: list[str], taken: list[str]) -> None:
    chosen = pipeline_files(INDEX, sorted(ALWAYS + there + OTHERS), variant)
    assert sorted(chosen[:-1]) == sorted(ALWAYS + taken)
    assert chosen[-1] == "model_index.json"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ALWAYS + SINGLE + ["text_encoder/pytorch_model.bin"],
            "Part text_encoder has no safetensors .*another",
        ),
        (ALWAYS + SHARDED_FP16 + SINGLE, "Part text_encoder .*set first_frame.variant"),
        (ALWAYS[1:] + SHARDED + SINGLE, "Nothing is there of part scheduler"),
    ],
)
def test_parts_that_cannot_be_had_are_named(names: list[str], said: str) -> None:
    with pytest.raises(WeightsMissing, match=said):
        pipeline_files(INDEX, names, "bf16")


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"_class_name": "X", "unet": null}', '{"scheduler": ["diffusers", "X"]}']
)
def test_an_index_of_no_pipeline_is_refused(index: str) -> None:
    with pytest.raises(WeightsMissing, match="names no parts of a diffusers pipeline"):
        pipeline_files(json.loads(index), ALWAYS, "")
