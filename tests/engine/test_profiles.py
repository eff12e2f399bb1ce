from dataclasses import replace
from pathlib import Path

import pytest

from stillmotion.errors import UserError, WeightsMissing
from stillmotion.profiles import (
    PRESETS,
    choose_profile,
    load_profile,
    nearest_size,
    own_profile,
    parse_profile,
    profile_names,
)

POCKET = (PRESETS / "pocket.toml").read_text()
HERE = Path("here.toml")


def test_both_profiles_load() -> None:
    assert profile_names() == ["pocket", "svd"]
    pocket, svd = load_profile("pocket"), load_profile("svd")
    assert pocket.weights_dir(Path("data")).parts[-2:] == ("weights", "pocket")
    assert svd.weights_dir(Path("data")) == Path("data/weights/svd")
    assert svd.codec.unshuffle_in == svd.codec.shuffle_out == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("grid = 40", "grid = 40\ngird = 41", r"here.toml: unknown key samplers.lcm.gird"),
        ("grid = 40", "", r"here.toml: key samplers.lcm.grid is missing"),
        ("frames = 25", 'frames = "25"', r"frames is '25', it must be of type int"),
        ("frames = 25", "frames = true", r"frames is True"),
        ('output = "latent"', 'output = "pixels"', r"first_frame.output is 'pixels', it must be one of"),
        ("[[512, 288]", "[[512]", r"native_sizes is \[512\], it must be a list of 2"),
        ('cpu = "float32"', 'cpu = "float16"', r"dtype.cpu is 'float16'"),
        ("frames = 25", "frames = = 25", r"here.toml: not valid TOML"),
        ("frames = 25", "frames = 0", r"frames is 0, it must be at least 1"),
        ("steps = 25", "steps = 0", r"samplers.euler.steps is 0, it must be at least 1"),
        ("steps = 25", "steps = 25\nreuse_interval = 0", r"reuse_interval is 0, it must be at least 1"),
        ("steps = 25", "steps = 25\nreuse_branch = -1", r"reuse_branch is -1, it must be at least 0"),
        ("grid = 40", "grid = 19", r"samplers.lcm.grid is 19, it must be at least 20"),
        ("sigma_min = 4", "sigma_min = 0", r"samplers.lcm.sigma_min is 0.0, it must be above 0 and below"),
        ("sigma_max = 700", "sigma_max = 3", r"sigma_min is 4.0, it must be above 0 and below sigma_max, 3"),
        ("[[512, 288]", "[[500, 288]", r"native_sizes is \[500, 288\], it must be two positive multiples"),
    ],
)
def test_a_wrong_profile_is_refused_naming_file_and_key(old: str, new: str, said: str) -> None:
    assert old in POCKET
    with pytest.raises(UserError, match=said):
        parse_profile(POCKET.replace(old, new, 1), HERE)


def test_unknown_profile_names_the_known() -> None:
    with pytest.raises(UserError, match="the profiles are pocket, svd"):
        load_profile("sdxl")


def test_auto_takes_big_weights_only_with_their_device(tmp_path: Path) -> None:
    profile, why = choose_profile("auto", cuda=False, data_dir=tmp_path)
    assert profile.name == "pocket"
    assert "svd needs a CUDA device" in why
    profile, why = choose_profile("auto", cuda=True, data_dir=tmp_path)
    assert profile.name == "pocket"
    assert "svd has no weights" in why
    svd = load_profile("svd")
    for part in svd.missing_parts(tmp_path):
        file = svd.weights_dir(tmp_path) / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert choose_profile("auto", cuda=True, data_dir=tmp_path)[0].name == "svd"
    assert choose_profile("auto", cuda=False, data_dir=tmp_path)[0].name == "pocket"


def test_svd_is_refused_without_cuda_and_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a CUDA device"):
        choose_profile("svd", cuda=False, data_dir=tmp_path)
    with pytest.raises(WeightsMissing, match="models pull svd"):
        choose_profile("svd", cuda=True, data_dir=tmp_path)


def own(data_dir: Path, name: str, text: str) -> Path:
    file = own_profile(name, data_dir)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_an_owners_file_changes_the_keys_it_names_and_no_other(tmp_path: Path) -> None:
    file = own(tmp_path, "pocket", "threads = 2\n[samplers.euler]\nsteps = 30\nguidance_max = 2")
    before, after = load_profile("pocket"), load_profile("pocket", tmp_path)
    euler = replace(before.samplers.euler, steps=30, guidance_max=2.0)
    assert after == replace(before, threads=2, samplers=replace(before.samplers, euler=euler))
    profile, why = choose_profile("pocket", cuda=False, data_dir=tmp_path)
    assert (profile, why) == (after, f"asked for; changed by {file}")
    assert load_profile("svd", tmp_path) == load_profile("svd")


def test_an_owners_lists_replace_those_of_the_preset(tmp_path: Path) -> None:
    own(
        tmp_path,
        "svd",
        "native_sizes = [[1024, 576]]\n[first_frame]\nscheduler = { use_karras_sigmas = 'no' }",
    )
    svd = load_profile("svd", tmp_path)
    assert svd.native_sizes == ((1024, 576),)
    assert svd.first_frame.scheduler == {"timestep_spacing": "trailing", "use_karras_sigmas": "no"}


def examples(page: str) -> list[str]:
    """The TOML of a page of the docs."""
    parts = (Path(__file__).parents[2] / "docs" / page).read_text().split("```toml\n")[1:]
    return [part.split("```")[0] for part in parts]


def test_the_examples_in_the_docs_work(tmp_path: Path) -> None:
    own(tmp_path, "svd", examples("engine.md")[0])
    euler = load_profile("svd", tmp_path).samplers.euler
    assert (euler.steps, euler.guidance_min, euler.guidance_max) == (30, 1.0, 3.0)
    other, flux, sprint = examples("weights.md")
    own(tmp_path, "svd", other)
    svd = load_profile("svd", tmp_path)
    assert svd.parts.turbo_unet == "my-distilled-unet.safetensors"
    assert (svd.first_frame.folder, svd.first_frame.steps) == ("my-pipeline", 8)
    own(tmp_path, "svd", flux)
    svd = load_profile("svd", tmp_path)
    assert svd.first_frame.arguments == {"max_sequence_length": 256}
    assert [preset.name for preset in svd.memory] == ["whole", "film", "stages"]
    assert svd.sources[-1].repository == "black-forest-labs/FLUX.1-schnell"
    own(tmp_path, "svd", sprint)
    assert load_profile("svd", tmp_path).first_frame.guidance_scale == 4.5


PICTURES = """
[first_frame]
repository = "makers/pictures"
folder = "pictures"
steps = 8
guidance_scale = 0
output = "image"
"""


def test_a_first_frame_with_a_repository_stands_alone_and_is_all_that_is_fetched_for_it(
    tmp_path: Path,
) -> None:
    before = load_profile("svd")
    own(tmp_path, "svd", PICTURES)
    svd = load_profile("svd", tmp_path)
    assert (svd.first_frame.unet, svd.first_frame.scheduler, svd.first_frame.sizes) == ("", {}, ())
    assert [source.folder for source in before.sources] == ["", "", "text_to_image", "text_to_image"]
    assert [source.folder for source in svd.sources] == ["", "", "pictures"]
    assert (svd.sources[-1].files, svd.sources[-1].licence) == ((), "see the page of makers/pictures")
    assert svd.sources[:2] == before.sources[:2]
    assert not any(part.startswith("text_to_image") for part in svd.missing_parts(tmp_path))
    assert "pictures/model_index.json" in svd.missing_parts(tmp_path)


def test_a_folder_filled_by_hand_takes_the_place_of_the_sources_of_the_presets(tmp_path: Path) -> None:
    own(tmp_path, "svd", 'first_frame = { folder = "mine", unet = "" }')
    svd = load_profile("svd", tmp_path)
    assert [source.folder for source in svd.sources] == ["", ""]
    assert svd.first_frame.steps == load_profile("svd").first_frame.steps
    assert "mine/model_index.json" in svd.missing_parts(tmp_path)


def test_a_variant_of_the_first_frame_is_its_own(tmp_path: Path) -> None:
    own(tmp_path, "svd", f'{PICTURES}variant = "bf16"')
    svd = load_profile("svd", tmp_path)
    assert (svd.variant_in("pictures"), svd.variant_in("unet")) == ("bf16", "fp16")
    own(tmp_path, "svd", PICTURES)
    assert load_profile("svd", tmp_path).variant_in("pictures") == "fp16"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[samplers.euler]\nstep = 30",
            r"pocket.toml: unknown key samplers.euler.step; known here are steps",
        ),
        ("[samplers.euler]\nsteps = 0", r"pocket.toml: samplers.euler.steps is 0"),
        ("samplers = 3", r"pocket.toml: samplers is 3, it must be a table"),
        ("name = 'mine'", r"pocket.toml: name cannot be changed"),
        ("[first_frame]\nrepository = 'a/b'", r"pocket.toml: key first_frame.folder is missing"),
        (PICTURES.replace('"pictures"', '""'), r"first_frame.folder is '', it must be a folder that nothing"),
        (
            f"{PICTURES}arguments = {{ sigmas = [1] }}",
            r"first_frame.arguments.sigmas is \[1\], it must be text",
        ),
        (f"{PICTURES}arguments = 3", r"first_frame.arguments is 3, it must be a table"),
        (f"{PICTURES}sizes = [[1000, 500]]", r"first_frame.sizes is \[1000, 500\], it must be two positive"),
        ("threads 2", r"pocket.toml: not valid TOML"),
        ("[codec]\ncell = 0", r"codec.cell is 0, it must be at least 1"),
        ("warm_size = [0, 64]", r"warm_size is 0, it must be at least 1"),
        ("[samplers.euler]\nsigma_max = inf", r"samplers.euler.sigma_max is inf, it must be a finite number"),
        ("[first_frame]\nguidance_scale = nan", r"first_frame.guidance_scale is nan, it must be a finite"),
        ("[parts]\nunet = '/big/unet'", r"parts.unet is '/big/unet', it must be a path inside the weights"),
        (PICTURES.replace("pictures", "../x"), r"first_frame.folder is '../x', it must be a path inside"),
        (
            "[[sources]]\nrepository = 'a/b'\nlicence = ''\nfiles = ['../x.json']",
            r"sources.files is '../x.json', it must be a path inside",
        ),
    ],
)
def test_an_owners_mistake_is_refused_naming_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    own(tmp_path, "pocket", text)
    with pytest.raises(UserError, match=said):
        choose_profile("auto", cuda=False, data_dir=tmp_path)


def test_an_owners_file_for_no_profile_is_refused_rather_than_ignored(tmp_path: Path) -> None:
    own(tmp_path, "sdv", "threads = 2")
    with pytest.raises(UserError, match=r"sdv.toml changes no profile; name it after one of pocket, svd"):
        choose_profile("auto", cuda=False, data_dir=tmp_path)


def test_nearest_size_compares_aspects_as_ratios() -> None:
    sizes = ((1024, 576), (768, 768), (576, 1024))
    assert nearest_size(1000, 500, sizes) == (1024, 576)
    assert nearest_size(500, 1000, sizes) == (576, 1024)
    assert nearest_size(1000, 900, sizes) == (768, 768)
