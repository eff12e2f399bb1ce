from pathlib import Path

import pytest

from stillmotion.errors import UserError, WeightsMissing
from stillmotion.profiles import (
    PRESETS,
    choose_profile,
    load_profile,
    nearest_size,
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
    assert svd.native_sizes == ()


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


def test_nearest_size_compares_aspects_as_ratios() -> None:
    sizes = ((1024, 576), (768, 768), (576, 1024))
    assert nearest_size(1000, 500, sizes) == (1024, 576)
    assert nearest_size(500, 1000, sizes) == (576, 1024)
    assert nearest_size(1000, 900, sizes) == (768, 768)
