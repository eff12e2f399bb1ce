"""Weights on their way here: pulled from a hub, imported from a folder, verified, and refused when wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillmotion.engine import Engine
from stillmotion.engine.loading import digest_files
from stillmotion.errors import UserError, WeightsMissing
from stillmotion.lockfile import LOCK_NAME, LockedFile, read_lock, write_lock
from stillmotion.models.folder import SPARE_BYTES, Flaw, import_from, plan_pull, pull, remove, verify
from stillmotion.models.hub import Hub
from stillmotion.profiles import Profile, load_profile, parse_profile
from stillmotion.types import Assignment
from tests.engine import tiny
from tests.engine.conftest import Notebook
from tests.hub import COMMIT, LocalHub

Said = list[str]
VIDEO, TURBO, PICTURE, LIGHTNING = (
    "makers/video",
    "distillers/turbo",
    "makers/picture",
    "distillers/lightning",
)


def put(origin: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(origin, target)


@pytest.fixture(scope="module")
def repositories(kl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights as four hub repositories, one folder each."""
    root = tmp_path_factory.mktemp("hub")
    for path in sorted(path for path in kl_folder.rglob("*") if path.is_file()):
        name = path.relative_to(kl_folder)
        if name.parts[0] == "text_to_image":
            inner = Path(*name.parts[1:])
            put(path, root / (LIGHTNING if inner.name.startswith("lightning") else PICTURE) / inner)
        else:
            put(path, root / (TURBO if name.name == "turbo.safetensors" else VIDEO) / name)
    put(kl_folder / "turbo.safetensors", root / VIDEO / "other.bin")
    return root


@pytest.fixture(scope="module")
def profile(repositories: Path) -> Profile:
    def source(repository: str, **more: str) -> str:
        folder = repositories / repository
        files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
        lines = {"repository": f'"{repository}"', "licence": '"Apache-2.0"', **more}
        lines["files"] = str([name for name in files if not name.endswith(".bin")])
        return "\n[[sources]]\n" + "\n".join(f"{key} = {value}" for key, value in lines.items()) + "\n"

    text = tiny.KL_PROFILE + source(VIDEO) + source(TURBO, cast='["turbo.safetensors"]')
    text += source(PICTURE, folder='"text_to_image"') + source(LIGHTNING, folder='"text_to_image"')
    return parse_profile(text, Path("tiny-hub.toml"))


def pull_all(profile: Profile, folder: Path, hub: LocalHub, token: str | None = None) -> None:
    client = Hub(token, hub.url)
    pull(plan_pull(profile, folder, client)[1], folder, client, Said().append)


def flaws(profile: Profile, folder: Path) -> list[Flaw]:
    return [told for told in verify(profile, folder) if isinstance(told, Flaw)]


def test_pulled_weights_verify_and_make_a_film(
    profile: Profile, hub: LocalHub, tmp_path: Path, assign: Callable[..., Assignment]
) -> None:
    folder = tmp_path / "weights"
    pull_all(profile, folder, hub)
    assert flaws(profile, folder) == []
    lock = read_lock(folder)
    assert {entry.commit for entry in lock.values()} == {COMMIT}
    assert {path for path in lock} == {s.place(name) for s in profile.sources for name in s.files}
    wanted = assign()
    Engine(profile, folder, "cpu").make(wanted, Notebook())
    assert Path(wanted.output).stat().st_size > 1000


def test_turbo_weights_are_kept_at_half_size_under_their_own_digest(
    profile: Profile, hub: LocalHub, tmp_path: Path, kl_folder: Path
) -> None:
    pull_all(profile, tmp_path, hub)
    kept, given = load_file(tmp_path / "turbo.safetensors"), load_file(kl_folder / "turbo.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}
    assert all(torch.equal(kept[name], given[name].half()) for name in given)
    entry = read_lock(tmp_path)["turbo.safetensors"]
    assert entry.cast_from != entry.sha256
    assert entry.size < (kl_folder / "turbo.safetensors").stat().st_size * 0.6


def test_a_second_pull_fetches_nothing_and_a_lost_file_alone_comes_again(
    profile: Profile, hub: LocalHub, tmp_path: Path
) -> None:
    pull_all(profile, tmp_path, hub)
    hub.sent.clear()
    pull_all(profile, tmp_path, hub)
    assert hub.sent == []
    (tmp_path / "vae" / "config.json").unlink()
    pull_all(profile, tmp_path, hub)
    assert [name for name, *_ in hub.sent] == ["vae/config.json"]
    hub.sent.clear()
    (tmp_path / "turbo.safetensors").write_bytes(b"cut")
    pull_all(profile, tmp_path, hub)
    assert [name for name, *_ in hub.sent] == ["turbo.safetensors"]


def test_a_pull_fetches_no_large_file_whose_bytes_were_imported(
    profile: Profile, hub: LocalHub, kl_folder: Path, tmp_path: Path
) -> None:
    import_from(profile, tmp_path, kl_folder, Said().append)
    pull_all(profile, tmp_path, hub)
    assert hub.sent and not [name for name, *_ in hub.sent if name.endswith(".safetensors")]


def test_a_download_that_is_cut_goes_on_where_it_stopped(
    profile: Profile, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Written through in chunks of 10 MB, more than these files have.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut_after = 10_000
    pull_all(profile, tmp_path, hub)
    assert flaws(profile, tmp_path) == []
    assert [start for _, start, _ in hub.sent if start] == [10_000]


# The hub names a SHA-256 of the first and a git blob of the second.
@pytest.mark.parametrize("name", ["turbo.safetensors", "model_index.json"])
def test_bytes_that_differ_from_the_hubs_digest_are_deleted(
    profile: Profile, hub: LocalHub, tmp_path: Path, name: str
) -> None:
    hub.corrupt = {name}
    with pytest.raises(WeightsMissing, match=rf"{name} arrived with other bytes"):
        pull_all(profile, tmp_path, hub)
    assert not list(tmp_path.rglob(name))
    hub.corrupt = set()
    pull_all(profile, tmp_path, hub)
    assert flaws(profile, tmp_path) == []


def test_a_pull_that_would_not_fit_fetches_nothing(profile: Profile, hub: LocalHub, tmp_path: Path) -> None:
    client = Hub(endpoint=hub.url)
    _, missing = plan_pull(profile, tmp_path, client)
    for size in (10**18, shutil.disk_usage(tmp_path).free - SPARE_BYTES // 2):
        with pytest.raises(UserError, match="GB free and"):
            pull([replace(missing[0], size=size)], tmp_path, client, Said().append)
    assert list(tmp_path.iterdir()) == []


def test_a_gated_repository_says_what_to_accept_and_which_token_to_set(
    profile: Profile, hub: LocalHub, tmp_path: Path
) -> None:
    hub.gated = {VIDEO: "hf_right"}
    for token in (None, "hf_wrong"):
        with pytest.raises(WeightsMissing, match=r"makers/video is gated.*accept its licence.*HF_TOKEN"):
            pull_all(profile, tmp_path, hub, token)
    pull_all(profile, tmp_path, hub, "hf_right")
    assert flaws(profile, tmp_path) == []


def test_a_repository_that_is_gone_and_a_hub_that_is_off_are_explained(
    profile: Profile, hub: LocalHub, tmp_path: Path
) -> None:
    gone = parse_profile(
        tiny.KL_PROFILE + '\n[[sources]]\nrepository = "a/b"\nlicence = "x"\nfiles = ["c.json"]\n',
        Path("x.toml"),
    )
    with pytest.raises(WeightsMissing, match="shows no repository a/b"):
        plan_pull(gone, tmp_path, Hub(None, hub.url))
    with pytest.raises(WeightsMissing, match=r"could not be read.*models import"):
        plan_pull(profile, tmp_path, Hub(None, "http://127.0.0.1:9"))


def test_a_file_the_repository_no_longer_holds_is_named(hub: LocalHub, tmp_path: Path) -> None:
    text = f'\n[[sources]]\nrepository = "{VIDEO}"\nlicence = "x"\nfiles = ["unet/lost.safetensors"]\n'
    moved = parse_profile(tiny.KL_PROFILE + text, Path("x.toml"))
    with pytest.raises(WeightsMissing, match=r"no longer holds unet/lost\.safetensors"):
        plan_pull(moved, tmp_path, Hub(None, hub.url))


def test_formats_that_can_run_code_are_refused(hub: LocalHub, tmp_path: Path) -> None:
    text = f'\n[[sources]]\nrepository = "{VIDEO}"\nlicence = "x"\nfiles = ["other.bin"]\n'
    with pytest.raises(UserError, match="only safetensors"):
        plan_pull(parse_profile(tiny.KL_PROFILE + text, Path("x.toml")), tmp_path, Hub(None, hub.url))


@pytest.mark.parametrize("layout", ["weights", "owners", "cache"])
def test_weights_on_disk_are_imported_from_each_layout(
    layout: str, profile: Profile, repositories: Path, kl_folder: Path, tmp_path: Path
) -> None:
    origin = {"weights": kl_folder, "owners": repositories, "cache": tmp_path / "cache"}[layout]
    if layout == "cache":
        for repository in (VIDEO, TURBO, PICTURE, LIGHTNING):
            name = f"models--{repository.replace('/', '--')}"
            shutil.copytree(repositories / repository, origin / name / "snapshots" / COMMIT)
    import_from(profile, tmp_path / "weights", origin, Said().append)
    assert flaws(profile, tmp_path / "weights") == []
    assert {entry.commit for entry in read_lock(tmp_path / "weights").values()} == {""}


def test_import_names_what_the_folder_lacks_and_takes_nothing(
    profile: Profile, kl_folder: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(kl_folder, origin)
    (origin / "turbo.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"lacks distillers/turbo/turbo\.safetensors"):
        import_from(profile, tmp_path / "weights", origin, Said().append)
    assert not (tmp_path / "weights").exists()


# The first is cast on its way, the second copied.
@pytest.mark.parametrize("cut", ["turbo.safetensors", "vae/*.safetensors"])
def test_import_refuses_a_file_cut_short(cut: str, profile: Profile, kl_folder: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(kl_folder, origin)
    [file] = origin.glob(cut)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsMissing, match=rf"{file.name} cannot be read as safetensors"):
        import_from(profile, tmp_path / "weights", origin, Said().append)


def test_verify_tells_each_kind_of_flaw(profile: Profile, kl_folder: Path, tmp_path: Path) -> None:
    import_from(profile, tmp_path, kl_folder, Said().append)
    with (tmp_path / "turbo.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    (tmp_path / "vae" / "config.json").unlink()
    told = {flaw.path: flaw.problem for flaw in flaws(profile, tmp_path)}
    assert told.keys() == {"turbo.safetensors", "vae/config.json"}
    assert "other bytes" in told["turbo.safetensors"]
    assert "not there" in told["vae/config.json"]
    assert remove(tmp_path) > 0
    assert not tmp_path.exists()


def test_a_lock_is_taken_at_its_word_for_a_file_of_its_size_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    true = digest_files(tmp_path)
    told: list[str] = []
    for size in (2, 3):
        write_lock(tmp_path, {"config.json": LockedFile(size=size, sha256="0" * 64, repository="r")})
        told.append(digest_files(tmp_path))
    assert [each == true for each in told] == [False, True]


def test_a_value_beyond_float16_is_refused(profile: Profile, kl_folder: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(kl_folder, origin)
    tensors = load_file(origin / "turbo.safetensors")
    tensors[next(iter(tensors))].view(-1)[0] = 1e6
    save_file(tensors, origin / "turbo.safetensors")
    with pytest.raises(WeightsMissing, match="values that float16 cannot"):
        import_from(profile, tmp_path / "weights", origin, Said().append)


def test_a_damaged_lock_is_explained(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text('{"version": 1, "files": [1]}')
    with pytest.raises(WeightsMissing, match="is damaged"):
        list(verify(profile, tmp_path))


def test_weights_that_ship_are_not_fetched(tmp_path: Path) -> None:
    told: Any = load_profile("pocket")
    with pytest.raises(UserError, match="ship with Stillmotion"):
        import_from(told, tmp_path, tmp_path, Said().append)
