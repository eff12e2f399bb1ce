"""First frames by pipelines of other classes than Stable Diffusion's, from folders in the hub's layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillmotion.engine import Engine
from stillmotion.engine.memory import Placement
from stillmotion.engine.pipelines import load_pipeline
from stillmotion.engine.quiet import no_advice
from stillmotion.errors import InputRefused, RequestCancelled, WeightsMissing
from stillmotion.profiles import Profile, parse_profile
from stillmotion.types import Assignment
from stillmotion.video import read_frames
from tests.engine import tiny, tiny_pictures
from tests.engine.conftest import Notebook

Assign = Callable[..., Assignment]
CPU = torch.device("cpu")
NONE_STAYS = '\n[[memory]]\nname = "none"\nneeds_gib = 1\n'
ASKED = 'steps = 2\nguidance_scale = 3\noutput = "image"\nsizes = [[96, 64], [64, 64]]\n'


def profile(name: str, changes: str = "", asked: str = ASKED) -> Profile:
    film = tiny.KL_PROFILE.partition("[first_frame]")[0]
    told = f'[first_frame]\nfolder = "{name}"\n{asked}'
    return parse_profile(
        film + told + (changes or tiny_pictures.PIPELINES[name][1]) + NONE_STAYS, Path("x.toml")
    )


@pytest.fixture(scope="module")
def folder(kl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny film's networks beside every text-to-image pipeline, each in a folder of its own."""
    root = tmp_path_factory.mktemp("pictures") / "weights"
    shutil.copytree(kl_folder, root, ignore=shutil.ignore_patterns("text_to_image"))
    for name in tiny_pictures.PIPELINES:
        tiny_pictures.write(name, root / name)
    return root


@pytest.fixture(scope="module", params=tiny_pictures.PIPELINES)
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return Engine(profile(request.param), folder, "cpu")


def drawn(
    engine: Engine, seed: int, notebook: Notebook | None = None, prompt: str = "a red rocket"
) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    told = notebook or Notebook()
    with torch.inference_mode():
        return engine.weights.first_frame.draw(prompt, (96, 64), generator, told, engine.memory)


def let_move(engine: Engine) -> None:
    """Have an engine's parts come and leave as on a GPU; here, from one piece of memory to another."""
    with torch.inference_mode():
        engine.memory = Placement(engine.weights.parts, engine.memory.preset, CPU, moves=True)


def test_the_seed_decides_the_picture_and_nothing_else_does(engine: Engine) -> None:
    first, other = drawn(engine, 7), drawn(engine, 8)
    torch.rand(3)  # the global generator must not matter
    again = drawn(engine, 7)
    assert first.shape == (1, 3, 64, 96)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bfloat16_noise_is_the_float32_noise_rounded() -> None:
    wide, narrow = (
        torch.randn(1 << 12, generator=torch.Generator("cpu").manual_seed(3), dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(wide.bfloat16(), narrow)


def test_the_film_s_own_noise_is_the_same_whatever_draws_the_picture(engine: Engine) -> None:
    generator = torch.Generator("cpu").manual_seed(7)
    before = generator.get_state()
    with torch.inference_mode():
        engine.weights.first_frame.draw("a rocket", (64, 64), generator, Notebook(), engine.memory)
    assert torch.equal(generator.get_state(), before)


def test_prompts_make_different_pictures(engine: Engine) -> None:
    assert not torch.equal(drawn(engine, 7), drawn(engine, 7, prompt="quiet blue water under a bridge"))


def test_a_film_is_made_of_it_with_progress_and_moving_parts(engine: Engine, assign: Assign) -> None:
    films: set[bytes] = set()
    let_move(engine)
    for _ in range(2):
        notebook = Notebook()
        wanted = assign()
        engine.make(wanted, notebook)
        films.add(Path(wanted.output).read_bytes())
        assert [seen for seen in notebook.seen if seen[0] == "first frame"] == [
            ("first frame", 1, 2),
            ("first frame", 2, 2),
        ]
        assert read_frames(Path(wanted.output)).shape == (tiny.FRAMES, 64, 96, 3)
        assert not any(part.here for part in engine.memory.parts.values())
    assert len(films) == 1


def test_a_picture_that_a_safety_checker_blanks_is_refused_and_not_filmed(
    kl_folder: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(kl_folder, weights, ignore=shutil.ignore_patterns("text_to_image"))
    with no_advice():
        tiny_pictures.checked().save_pretrained(weights / "checked")
    engine = Engine(profile("checked", "scheduler = {}\n"), weights, "cpu")
    assert drawn(engine, 7).isfinite().all()
    with torch.no_grad():
        engine.weights.first_frame.pipeline.safety_checker.concept_embeds_weights.fill_(-2)
    with pytest.raises(InputRefused, match="safety checker") as found:
        drawn(engine, 7)
    assert (found.value.failure.kind, found.value.failure.field) == ("content_policy_violation", "prompt")


def test_each_stage_has_its_own_networks_on_the_device_and_no_others(engine: Engine) -> None:
    let_move(engine)
    pipeline, seen = engine.weights.first_frame.pipeline, dict[str, set[str]]()
    hooks: list[Any] = []

    def watch(name: str, module: Any) -> None:
        def note(*_: object) -> None:
            seen[name] = {part for part, movable in engine.memory.parts.items() if movable.here}

        hooks.append(module.register_forward_pre_hook(note))

    vae = pipeline.components.get("vae") or pipeline.movq
    watch("text_encoder", pipeline.text_encoder)
    watch("picture_unet", pipeline.components.get("transformer") or pipeline.unet)
    watch("picture_vae", vae.decoder)
    try:
        drawn(engine, 7)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == {
        "text_encoder": {"text_encoder"},
        "picture_unet": {"picture_unet", "picture_vae"},
        "picture_vae": {"picture_vae"},
    }
    assert not any(part.here for part in engine.memory.parts.values())


def test_cancel_stops_between_steps_and_leaves_nothing_on_the_device(engine: Engine) -> None:
    class CancelledWithin(Notebook):
        def check_cancelled(self) -> None:
            raise RequestCancelled

    let_move(engine)
    notebook = CancelledWithin()
    with pytest.raises(RequestCancelled):
        drawn(engine, 7, notebook)
    assert notebook.seen == [("first frame", 1, 2)]
    assert not any(part.here for part in engine.memory.parts.values())


def test_a_picture_that_is_no_number_is_told_as_such(engine: Engine) -> None:
    def spoil(network: Any, given: Any, made: Any) -> Any:
        (sample, *rest) = made if isinstance(made, tuple) else (made[0],)
        if isinstance(sample, list):  # one tensor a picture
            return ([each * float("nan") for each in sample], *rest)
        spoilt = sample * float("nan")
        return (spoilt, *rest) if isinstance(made, tuple) else type(made)(sample=spoilt)

    pipeline = engine.weights.first_frame.pipeline
    network = pipeline.components.get("transformer") or pipeline.unet
    hook = network.register_forward_hook(spoil)
    try:
        with pytest.raises(InputRefused, match="first frame"):
            drawn(engine, 7)
    finally:
        hook.remove()


def test_a_scheduler_that_adds_noise_in_every_step_takes_it_from_the_seed(
    kl_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "weights"
    shutil.copytree(kl_folder, root)
    sdxl = root / "text_to_image"
    index = json.loads((sdxl / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerAncestralDiscreteScheduler"]
    (sdxl / "model_index.json").write_text(json.dumps(index))
    engine = Engine(parse_profile(tiny.KL_PROFILE, Path("x.toml")), root, "cpu")
    first, other, again = (drawn(engine, seed) for seed in (7, 8, 7))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_takes_torch_s_own_random_numbers_takes_them_from_the_seed(folder: Path) -> None:
    engine = Engine(profile("flux"), folder, "cpu")
    taken: list[float] = []
    encoder = engine.weights.first_frame.pipeline.text_encoder
    encoder.register_forward_pre_hook(lambda *_: taken.append(float(torch.rand(()))))
    for seed in (7, 8, 7):
        drawn(engine, seed)
    first, other, again = taken
    assert first == again != other


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """FLUX in shards, to be damaged."""
    tiny_pictures.write("flux", tmp_path / "flux", max_shard_size="50KB")
    return tmp_path / "flux"


def load(name: str, folder: Path, changes: str = "", asked: str = ASKED) -> Any:
    ask = profile(name, changes, asked).first_frame
    return load_pipeline(folder, ask, device=CPU, dtype=torch.float32, variant="fp16")


def test_weights_in_shards_are_the_same_weights(spoilt: Path, folder: Path) -> None:
    assert len(list((spoilt / "transformer").glob("*-of-*.safetensors"))) > 1
    assert len(list((spoilt / "text_encoder_2").glob("*-of-*.safetensors"))) > 1
    in_shards, whole = load("flux", spoilt).components, load("flux", folder / "flux").components
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        tensors, same = in_shards[name].state_dict(), whole[name].state_dict()
        assert all(torch.equal(tensors[key], same[key]) for key in same)


@pytest.mark.parametrize("variant", ["fp16", "bf16", ""])
def test_parts_without_files_of_the_variant_are_loaded_from_their_plain_ones(
    folder: Path, tmp_path: Path, variant: str
) -> None:
    shutil.copytree(folder / "sd3", tmp_path / "sd3")
    file = tmp_path / "sd3" / "vae" / "diffusion_pytorch_model.safetensors"
    halved = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file({name: torch.zeros_like(tensor) for name, tensor in halved.items()}, file.with_suffix(".x"))
    file.with_suffix(".x").rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    ask = profile("sd3").first_frame
    loaded = load_pipeline(tmp_path / "sd3", ask, device=CPU, dtype=torch.float32, variant=variant)
    assert bool(loaded.vae.decoder.conv_in.weight.any()) == (variant != "fp16")
    assert bool(loaded.transformer.proj_out.weight.any())


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2", "vae", "tokenizer", "tokenizer_2"])
def test_a_part_that_is_damaged_or_gone_is_missing_weights(spoilt: Path, part: str) -> None:
    inside = spoilt / part
    file = sorted([*inside.glob("*.safetensors"), *inside.glob("tokenizer.json")])[0]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(WeightsMissing, match=r"flux cannot be loaded: .*verify"):
        load("flux", spoilt)
    file.unlink()
    with pytest.raises(WeightsMissing, match=r"flux cannot be loaded: .*verify|lacks tokenizer.json, or "):
        load("flux", spoilt)


def test_a_network_with_a_tensor_less_is_missing_weights(spoilt: Path) -> None:
    file = sorted((spoilt / "vae").glob("*.safetensors"))[0]
    tensors = load_file(file)
    save_file({name: tensors[name] for name in list(tensors)[1:]}, file)
    with pytest.raises(WeightsMissing, match=r"vae lacks 1 tensors"):
        load("flux", spoilt)


def test_a_vocabulary_for_a_package_that_is_not_here_says_which(spoilt: Path) -> None:
    inside = spoilt / "tokenizer_2"
    (inside / "tokenizer.json").rename(inside / "spiece.model")
    with pytest.raises(WeightsMissing, match="pip install sentencepiece protobuf"):
        load("flux", spoilt)


def test_a_pipeline_whose_packages_are_not_here_names_them(spoilt: Path) -> None:
    index = spoilt / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"_class_name": "OnnxStableDiffusionPipeline"})
    )
    with pytest.raises(WeightsMissing, match=r"needs the packages .*onnx"):
        load("flux", spoilt)


def test_a_pipeline_that_takes_no_guidance_is_asked_for_none(spoilt: Path) -> None:
    index = spoilt / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "HunyuanImagePipeline"}))
    with pytest.raises(
        WeightsMissing, match=r"takes no guidance_scale; write first_frame.guidance_scale = 0"
    ):
        load("flux", spoilt, "arguments = {}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FluxSchnellPipeline", r"'FluxSchnellPipeline', which diffusers [\d.]+ does not have"),
        (["pipeline", "Mine"], "does not have"),
        ("StableVideoDiffusionPipeline", "draws no picture from a prompt alone"),
        ("StableDiffusionXLImg2ImgPipeline", "draws no picture from a prompt alone"),
        ("FluxControlNetPipeline", "draws no picture from a prompt alone"),
        ("WanPipeline", "draws no picture from a prompt alone"),
        ("LattePipeline", "draws no picture from a prompt alone"),
        ("TextToVideoZeroPipeline", "draws no picture from a prompt alone"),
        ("StableCascadePriorPipeline", "draws no picture from a prompt alone"),
        ("KandinskyV22CombinedPipeline", "draws no picture from a prompt alone"),
        ("FluxImg2ImgPipeline", "starts from a picture"),
    ],
)
def test_other_kinds_of_pipelines_are_refused_with_advice(spoilt: Path, name: Any, said: str) -> None:
    index = spoilt / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))
    with pytest.raises(WeightsMissing, match=f"{said}.*docs/weights.md"):
        load("flux", spoilt)


@pytest.mark.parametrize("library", ["mine", "transformers"])
def test_code_in_a_folder_is_never_run(spoilt: Path, library: str) -> None:
    ran = spoilt.parent / "ran"
    (spoilt / "text_encoder" / "mine.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Mine: ...\n"
    )
    config = spoilt / "text_encoder" / "config.json"
    strange = {"model_type": "strange", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | strange))
    index = spoilt / "model_index.json"
    part = [library, "Mine" if library == "mine" else "AutoModel"]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder": part}))
    with pytest.raises(WeightsMissing, match="cannot be loaded"):
        load("flux", spoilt)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "asked", "changes", "said"),
    [
        ("flux", ASKED, "arguments = { steps = 3 }", "names steps; FluxPipeline takes .*max_sequence_length"),
        (
            "flux",
            ASKED,
            "arguments = { prompt = 'x' }",
            "names prompt, which the request or another key decides",
        ),
        ("flux", ASKED, 'unet = "mine.safetensors"', "first_frame.unet = 'mine.safetensors' is for"),
        ("flux", ASKED.replace("image", "latent"), "", "first_frame.output = 'latent' is for"),
    ],
)
def test_what_a_pipeline_cannot_be_asked_is_refused_at_the_start(
    folder: Path, name: str, asked: str, changes: str, said: str
) -> None:
    with pytest.raises(WeightsMissing, match=said):
        load(name, folder / name, changes, asked)


def test_a_size_that_a_pipeline_refuses_is_named(folder: Path) -> None:
    odd = profile("sana", asked=ASKED.replace("[96, 64]", "[104, 64]").replace("[64, 64]", "[72, 64]"))
    with pytest.raises(InputRefused, match=r"SanaPipeline cannot draw 72x64 .* divisible by 32"):
        Engine(odd, folder, "cpu")
