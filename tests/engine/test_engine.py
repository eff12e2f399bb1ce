import errno
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stillmotion.engine import Engine
from stillmotion.errors import DeviceLost, InputRefused, RequestCancelled, UserError, WeightsMissing
from stillmotion.profiles import parse_profile
from stillmotion.types import Assignment, Level, Sampler
from stillmotion.video import VideoWriter, read_frames
from tests.engine import tiny
from tests.engine.conftest import Notebook

Assign = Callable[..., Assignment]


def picture(folder: Path, width: int, height: int) -> str:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    path = folder / "start.png"
    Image.fromarray(np.stack((x, y, 255 - x), -1).astype(np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("name", ["kl_engine", "cells_engine"])
def test_equal_input_and_seed_give_equal_bytes(
    name: str, request: pytest.FixtureRequest, assign: Assign
) -> None:
    engine: Engine = request.getfixturevalue(name)
    made: list[bytes] = []
    for seed in (7, 8, 7):
        engine.make(assign(seed=seed), Notebook())
        torch.rand(3)  # the global generator must not matter
        made.append(Path(assign().output).read_bytes())
    assert made[0] == made[2]
    assert made[0] != made[1]


@pytest.mark.parametrize("name", ["kl_engine", "cells_engine"])
def test_a_film_finished_beside_the_next_has_the_same_bytes(
    name: str, request: pytest.FixtureRequest, assign: Assign, tmp_path: Path
) -> None:
    engine: Engine = request.getfixturevalue(name)
    alone: list[bytes] = []
    for seed in (7, 8):
        engine.make(assign(seed=seed), Notebook())
        alone.append(Path(assign().output).read_bytes())
    paths = [tmp_path / f"beside-{seed}.mp4" for seed in (7, 8)]
    finishing = [
        engine.render(assign(seed=seed, output=str(path)), Notebook())
        for seed, path in zip((7, 8), paths, strict=True)
    ]
    assert not any(path.exists() for path in paths)
    with ThreadPoolExecutor(1) as elsewhere:
        films = [elsewhere.submit(finish).result() for finish in finishing]
    assert [path.read_bytes() for path in paths] == alone
    assert all(film.timings["close"] > 0 for film in films)


@pytest.mark.parametrize("size", [(96, 64), (100, 80), (130, 70)])
def test_file_has_the_asked_size_and_every_frame(
    kl_engine: Engine, cells_engine: Engine, assign: Assign, size: tuple[int, int]
) -> None:
    for engine in (kl_engine, cells_engine):
        wanted = assign(width=size[0], height=size[1])
        film = engine.make(wanted, Notebook())
        assert (film.width, film.height) == size
        assert read_frames(Path(wanted.output)).shape == (tiny.FRAMES, size[1], size[0], 3)


@pytest.mark.parametrize(
    ("given", "bucket"), [((90, 50), (1024, 576)), ((60, 60), (768, 768)), ((40, 80), (576, 1024))]
)
def test_picture_without_a_size_gets_the_nearest_bucket(
    cells_engine: Engine, assign: Assign, tmp_path: Path, given: tuple[int, int], bucket: tuple[int, int]
) -> None:
    start = picture(tmp_path, *given)
    film = cells_engine.make(
        assign(prompt=None, picture=start, width=None, height=None, sampler=Sampler.EULER, steps=None),
        Notebook(),
    )
    assert (film.width, film.height) == bucket


def test_log_and_progress_tell_each_stage(cells_engine: Engine, assign: Assign) -> None:
    notebook = Notebook()
    film = cells_engine.make(assign(steps=3), notebook)
    lines = [message for level, message in notebook.lines if level is Level.INFO]
    assert lines[0].startswith("first frame ")
    assert [line.split(" (")[0] for line in lines[1:4]] == ["step 1/3", "step 2/3", "step 3/3"]
    assert lines[4].startswith("decoded 4 frames ")
    assert [step for step in notebook.seen if step[0] == "denoise"] == [
        ("denoise", 1, 3),
        ("denoise", 2, 3),
        ("denoise", 3, 3),
    ]
    assert set(film.timings) == {"first_frame", "encode", "denoise", "decode", "close"}


def test_cancel_stops_at_the_next_step_and_leaves_no_file(cells_engine: Engine, assign: Assign) -> None:
    notebook = Notebook(cancel_after=1)
    wanted = assign(steps=8)
    with pytest.raises(RequestCancelled):
        cells_engine.make(wanted, notebook)
    assert sum(stage == "denoise" for stage, _, _ in notebook.seen) == 1
    assert list(Path(wanted.output).parent.glob("film*")) == []


def test_cancel_before_the_first_frame_or_within_it_stops_there(cells_engine: Engine, assign: Assign) -> None:
    class CancelledEarly(Notebook):
        def check_cancelled(self) -> None:
            if self.seen:
                raise RequestCancelled

    before, within = Notebook(cancel_after=0), CancelledEarly()
    for notebook in (before, within):
        with pytest.raises(RequestCancelled):
            cells_engine.make(assign(), notebook)
    assert (before.seen, within.seen) == ([], [("first frame", 1, 2)])


def test_cancel_while_decoding_leaves_no_file(cells_engine: Engine, assign: Assign) -> None:
    class CancelledLate(Notebook):
        def check_cancelled(self) -> None:
            if any(stage == "decode" for stage, _, _ in self.seen):
                raise RequestCancelled

    wanted = assign()
    with pytest.raises(RequestCancelled):
        cells_engine.make(wanted, CancelledLate())
    assert list(Path(wanted.output).parent.glob("film*")) == []


def test_a_first_frame_that_is_no_number_is_told_as_such(cells_engine: Engine, assign: Assign) -> None:
    def spoil(network: Any, given: Any, made: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (made[0] * float("nan"),)

    hook = cells_engine.weights.first_frame.pipeline.unet.register_forward_hook(spoil)
    try:
        with pytest.raises(InputRefused, match="first frame"):
            cells_engine.make(assign(), Notebook())
    finally:
        hook.remove()


def test_a_frame_that_cannot_be_encoded_fails_the_film(
    cells_engine: Engine, assign: Assign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(writer: VideoWriter, frames: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(VideoWriter, "write", refuse)
    with pytest.raises(OSError, match="Input/output"):
        cells_engine.make(assign(), Notebook())
    assert list(Path(assign().output).parent.glob("film*")) == []


def test_prompt_of_unknown_words_gets_a_warning_that_names_the_known(
    cells_engine: Engine, assign: Assign
) -> None:
    unknown, known, in_two_words = Notebook(), Notebook(), Notebook()
    cells_engine.make(assign(prompt="Quarterly rocketry"), unknown)
    cells_engine.make(assign(prompt="A Rocket!"), known)
    cells_engine.make(assign(prompt="the space-ship"), in_two_words)
    (warning,) = [message for level, message in unknown.lines if level is Level.WARN]
    assert "objects: rocket" in warning
    assert "colours: red" in warning
    assert [level for level, _ in known.lines + in_two_words.lines if level is Level.WARN] == []


def test_every_parameter_changes_the_film(kl_engine: Engine, assign: Assign, tmp_path: Path) -> None:
    start = picture(tmp_path, 96, 64)
    made: set[bytes] = set()
    variants = [{}, {"motion_bucket_id": 20}, {"cond_aug": 3}, {"steps": 3}, {"sampler": Sampler.EULER}]
    for changes in variants:
        wanted = assign(prompt=None, picture=start, **changes)
        kl_engine.make(wanted, Notebook())
        made.add(read_frames(Path(wanted.output)).tobytes())
    assert len(made) == len(variants)


@pytest.mark.parametrize(("sampler", "rate"), [(Sampler.LCM, 7), (Sampler.EULER, 6)])
def test_each_network_is_told_the_profiles_rate_and_not_the_files(
    kl_engine: Engine, assign: Assign, sampler: Sampler, rate: int
) -> None:
    told: list[list[float]] = []

    def listen(network: Any, words: Any, named: Any) -> None:
        told.extend(named["added_time_ids"].tolist())

    hook = kl_engine.weights.unets[sampler].register_forward_pre_hook(listen, with_kwargs=True)
    try:
        kl_engine.make(assign(sampler=sampler, fps=25, motion_bucket_id=90, cond_aug=0.5), Notebook())
    finally:
        hook.remove()
    assert told and all(each == [rate - 1, 90, 0.5] for each in told)


def test_each_sampler_has_the_network_of_its_own_file(kl_engine: Engine, kl_folder: Path) -> None:
    unets = kl_engine.weights.unets
    own = load_file(kl_folder / "turbo.safetensors")["conv_in.weight"]
    assert unets[Sampler.LCM].conv_in.weight.equal(own)
    assert not unets[Sampler.EULER].conv_in.weight.equal(own)


def test_torch_and_encoder_work_with_the_threads_of_the_profile(cells_folder: Path, assign: Assign) -> None:
    torch.set_num_threads(2)
    engine = Engine(parse_profile(tiny.CELLS_PROFILE, Path("x.toml")), cells_folder, "cpu")
    assert torch.get_num_threads() == 1
    wanted = assign(width=512, height=512)
    engine.make(wanted, Notebook())
    assert b" threads=1 " in Path(wanted.output).read_bytes()


def test_a_thread_is_left_to_the_encoder_while_frames_are_decoded(
    cells_folder: Path, assign: Assign, tmp_path: Path
) -> None:
    profile = tiny.CELLS_PROFILE.replace("threads = 1", "threads = 3")
    engine = Engine(parse_profile(profile, Path("x.toml")), cells_folder, "cpu")
    seen: dict[str, set[int]] = {"unet": set(), "decoder": set()}
    networks = {"unet": engine.weights.unets[Sampler.LCM], "decoder": engine.weights.codec.vae.decoder}
    for name, network in networks.items():

        def note(*_: Any, name: str = name) -> None:
            seen[name].add(torch.get_num_threads())

        network.register_forward_hook(note)
    try:
        engine.make(assign(prompt=None, picture=picture(tmp_path, 96, 64)), Notebook())
        assert seen == {"unet": {3}, "decoder": {2}}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_fingerprint_changes_with_weights_and_profile(
    cells_engine: Engine, cells_folder: Path, kl_engine: Engine
) -> None:
    chunked = tiny.CELLS_PROFILE.replace("decode_chunk_size = 3", "decode_chunk_size = 2")
    other = Engine(parse_profile(chunked, Path("x.toml")), cells_folder, "cpu")
    same = Engine(parse_profile(tiny.CELLS_PROFILE, Path("x.toml")), cells_folder, "cpu")
    assert same.fingerprint == cells_engine.fingerprint
    assert len({cells_engine.fingerprint, other.fingerprint, kl_engine.fingerprint}) == 3


def test_weights_of_another_shape_are_refused_by_name(
    cells_folder: Path, kl_folder: Path, tmp_path: Path
) -> None:
    profile = parse_profile(tiny.CELLS_PROFILE, Path("x.toml"))
    with pytest.raises(WeightsMissing, match=r"diffusion_pytorch_model\.safetensors is not there"):
        Engine(profile, kl_folder, "cpu")
    broken = tmp_path / "broken"
    tiny.write_cells(broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensors[name] for name in list(tensors)[1:]}, file)
    with pytest.raises(WeightsMissing, match="does not fit the network"):
        Engine(profile, broken, "cpu")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsMissing, match="cannot be read as safetensors"):
        Engine(profile, broken, "cpu")


def test_an_image_encoder_with_a_tensor_less_is_missing_weights(cells_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(cells_folder, tmp_path / "broken")
    file = tmp_path / "broken" / "image_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensors[name] for name in list(tensors)[1:]}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match="image_encoder lacks 1 tensors"):
        Engine(parse_profile(tiny.CELLS_PROFILE, Path("x.toml")), tmp_path / "broken", "cpu")


def test_a_device_that_is_not_there_is_refused(cells_folder: Path) -> None:
    profile = parse_profile(tiny.CELLS_PROFILE, Path("x.toml"))
    with pytest.raises(UserError, match="torch sees"):
        Engine(profile, cells_folder, "cuda:63")


def test_weights_whose_cells_are_not_the_profiles_are_refused(cells_folder: Path) -> None:
    other = tiny.CELLS_PROFILE.replace("cell = 32", "cell = 16")
    with pytest.raises(WeightsMissing, match=r"codec\.cell says 16 pixels"):
        Engine(parse_profile(other, Path("x.toml")), cells_folder, "cpu")


def break_cuda(*call: object) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nfor a reason")


def fill_cuda(*call: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def fill_host(*call: object) -> None:
    torch.empty(10**15)


@pytest.mark.parametrize(
    ("fault", "told"), [(break_cuda, DeviceLost), (fill_cuda, MemoryError), (fill_host, MemoryError)]
)
def test_f10_f11_memory_and_devices_that_fail_are_told_apart(
    cells_engine: Engine, assign: Assign, fault: Callable[..., None], told: type[Exception]
) -> None:
    hook = cells_engine.weights.unets[Sampler.LCM].register_forward_pre_hook(fault)
    try:
        with pytest.raises(told):
            cells_engine.make(assign(), Notebook())
    finally:
        hook.remove()
    assert not Path(assign().output).exists()
    assert cells_engine.make(assign(), Notebook()).frames == tiny.FRAMES
