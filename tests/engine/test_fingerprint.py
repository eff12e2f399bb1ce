"""The fingerprint tells apart all that may change a film's bytes besides the request."""

import dataclasses
import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

import stillmotion
from stillmotion.engine import Engine, weights
from stillmotion.engine.weights import fingerprint
from stillmotion.profiles import Profile, change_profile, load_profile, own_profile
from stillmotion.types import Assignment, Sampler
from tests.engine import tiny
from tests.engine.conftest import Notebook


def flips(value: Any) -> Iterator[tuple[str, Any]]:
    """Every way to change one thing inside a value, with where it is."""
    if isinstance(value, str):
        yield "", f"{value}x"
    elif isinstance(value, bool):
        yield "", not value
    elif isinstance(value, int | float):
        yield "", value + 1
    elif isinstance(value, Mapping):
        yield "", {**value, "more": "x"}
    elif isinstance(value, tuple):
        yield "", (*value, "x")
        for at, item in enumerate(cast(tuple[Any, ...], value)):
            for where, other in flips(item):
                yield f"[{at}]{where}", (*value[:at], other, *value[at + 1 :])
    else:
        for field in dataclasses.fields(value):
            for where, other in flips(getattr(value, field.name)):
                yield f".{field.name}{where}", dataclasses.replace(value, **{field.name: other})


def of(profile: Profile, folder: Path) -> str:
    return fingerprint(profile, folder, torch.device("cpu"), torch.float32)


def test_every_field_of_a_profile_is_part_of_it(tmp_path: Path) -> None:
    # Some, as the title, change no pixel; that they count too costs a cache hit, not a promise.
    profile = load_profile("svd")
    told = {where: of(other, tmp_path) for where, other in flips(profile)}
    assert {where.split(".")[1].split("[")[0] for where in told} == {
        field.name for field in dataclasses.fields(Profile)
    }
    assert ".samplers.euler.guidance_min" in told
    assert ".native_sizes[1][0]" in told
    assert len({of(profile, tmp_path), *told.values()}) == len(told) + 1


def test_device_number_format_weights_versions_and_code_are_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, cpu = load_profile("svd"), torch.device("cpu")
    told = [of(profile, tmp_path), fingerprint(profile, tmp_path, cpu, torch.bfloat16)]
    (tmp_path / "unet.safetensors").write_bytes(b"1")
    told.append(of(profile, tmp_path))
    (tmp_path / "unet.safetensors").write_bytes(b"2")
    told.append(of(profile, tmp_path))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    told.append(of(profile, tmp_path))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True, "cpu_name": "any"})
    told.append(of(profile, tmp_path))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    told.append(of(profile, tmp_path))
    monkeypatch.setattr(stillmotion, "__version__", "another")
    told.append(of(profile, tmp_path))
    monkeypatch.setattr(weights, "PACKAGES", (*weights.PACKAGES, "pytest"))
    told.append(of(profile, tmp_path))
    package = tmp_path / "package"
    shutil.copytree(weights.HERE, package / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(weights.HERE.parent / "video.py", package)
    monkeypatch.setattr(weights, "HERE", package / "engine")
    for changed in (package / "engine" / "samplers.py", package / "video.py"):
        changed.write_text(f"{changed.read_text()}\n")
        told.append(of(profile, tmp_path))
    assert len(set(told)) == len(told)


def test_weights_behind_a_link_are_part_of_it(tmp_path: Path) -> None:
    weights_dir, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    weights_dir.mkdir()
    elsewhere.mkdir()
    (weights_dir / "text_to_image").symlink_to(elsewhere)
    told: set[str] = set()
    for data in (b"1", b"2"):
        (elsewhere / "model.safetensors").write_bytes(data)
        told.add(of(load_profile("svd"), weights_dir))
    assert len(told) == 2


def test_a_package_that_rewrites_prompts_is_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[str] = set()
    monkeypatch.syspath_prepend(tmp_path)
    for version in ("1", "2"):
        # PixArt and SANA have it mend the prompt, where it is installed.
        (tmp_path / f"ftfy-{version}.dist-info").mkdir()
        metadata = tmp_path / f"ftfy-{version}.dist-info" / "METADATA"
        metadata.write_text(f"Metadata-Version: 2.1\nName: ftfy\nVersion: {version}\n")
        importlib.invalidate_caches()
        told.add(of(load_profile("svd"), tmp_path / "weights"))
        shutil.rmtree(metadata.parent)
    assert len(told) == 2


def test_what_an_owner_changes_reaches_the_film_and_the_fingerprint(
    tmp_path: Path, assign: Callable[..., Assignment]
) -> None:
    def opened() -> Engine:
        profile = load_profile("pocket", tmp_path)
        return Engine(profile, profile.weights_dir(tmp_path), "cpu")

    before = opened().fingerprint
    own = own_profile("pocket", tmp_path)
    own.parent.mkdir()
    own.write_text("[samplers.euler]\nsteps = 3\nguidance_min = 1.5\nguidance_max = 3.0\n")
    changed, notes = opened(), Notebook()
    changed.make(assign(sampler=Sampler.EULER, steps=None), notes)
    assert ("denoise", 3, 3) in notes.seen
    assert changed.fingerprint != before


def test_another_few_step_unet_drops_into_its_place(
    kl_engine: Engine, kl_folder: Path, tmp_path: Path, assign: Callable[..., Assignment]
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(kl_folder, folder)
    torch.manual_seed(5)
    save_file(tiny.film_unet(4).state_dict(), folder / "other.safetensors")
    changed = change_profile(tiny.KL_PROFILE, "parts.turbo_unet = 'other.safetensors'", Path("own.toml"))
    engine = Engine(changed, folder, "cpu")
    assert engine.fingerprint != kl_engine.fingerprint
    same = {}
    for sampler in Sampler:
        films = []
        for maker in (engine, kl_engine):
            wanted = assign(sampler=sampler)
            maker.make(wanted, Notebook())
            films.append(Path(wanted.output).read_bytes())
        same[sampler] = films[0] == films[1]
    assert same == {Sampler.LCM: False, Sampler.EULER: True}
