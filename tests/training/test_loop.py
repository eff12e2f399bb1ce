"""A run goes on where it or another machine stopped, beside other workers, and on any device."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.engine.card import pretended
from training import (
    codec,
    loop,
    motion,
    picture,
    text,
    train_codec,
    train_picture,
    train_text,
    train_video,
    train_vision,
    vision,
)
from training.clips import Clips
from training.drawing import Ahead
from training.loop import Run, averaged, in_bfloat16, muon
from training.train_codec import CropDrawer
from training.train_text import Tower


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loop, "STATE", tmp_path)
    return tmp_path


def run_of(model: nn.Module, worker: int | None = None) -> Run:
    return Run("part", model, muon(model, 0.01, 0.01), minutes=1, worker=worker)


def learn(run: Run, steps: int) -> None:
    for _ in range(steps):
        run.learn((run.model(torch.ones(1, 4)) - 1).square().mean())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], within: float = 0.0) -> bool:
    return all(torch.allclose(a[name].float(), b[name].float(), atol=within, rtol=0) for name in a)


def test_a_run_resumes_with_its_step_and_moments(state: Path) -> None:
    first = run_of(nn.Linear(4, 4))
    learn(first, 3)
    first.save()
    again = run_of(nn.Linear(4, 4))
    assert again.step == 3 and again.warm_from == 0
    assert same(again.model.state_dict(), first.model.state_dict()) and same(again.average, first.average)
    learn(first, 1), learn(again, 1)
    assert same(again.model.state_dict(), first.model.state_dict())


def test_averaged_weights_alone_are_enough_to_go_on_with_a_warm_up(state: Path) -> None:
    first = run_of(nn.Linear(4, 4))
    learn(first, 3)
    first.save()
    (state / "part.pt").unlink()
    again = run_of(nn.Linear(4, 4))
    assert again.step == again.warm_from == 3 and again.rate() < 0.1
    assert same(again.model.state_dict(), first.average, within=1e-3)
    assert same(averaged("part"), first.average, within=1e-3)


def test_the_weights_that_are_further_count(state: Path) -> None:
    run = run_of(nn.Linear(4, 4))
    learn(run, 2)
    run.save()
    behind = (state / "part.pt").read_bytes()
    learn(run, 2)
    run.save()
    ahead = (state / "part.safetensors").read_bytes()
    (state / "part.pt").write_bytes(behind)
    again = run_of(nn.Linear(4, 4))
    assert again.step == again.warm_from == 4 and same(again.average, run.average, within=1e-3)
    assert same(averaged("part"), run.average, within=1e-3)
    again.save()
    (state / "part.safetensors").write_bytes(ahead)
    assert run_of(nn.Linear(4, 4)).warm_from == 0, "as far is not further"


def test_shipped_weights_begin_a_run_and_leave_one_that_has_begun(state: Path) -> None:
    shipped = {name: value.clone() for name, value in nn.Linear(4, 4).state_dict().items()}
    save_file(shipped, state / "shipped.safetensors")
    run = run_of(nn.Linear(4, 4))
    run.begin_from(state / "shipped.safetensors")
    assert same(run.model.state_dict(), shipped) and same(run.average, shipped)
    learn(run, 1)
    run.save()
    again = run_of(nn.Linear(4, 4))
    again.begin_from(state / "shipped.safetensors")
    assert same(again.model.state_dict(), run.model.state_dict())


def test_weights_travel_in_less_than_sixteen_megabytes(state: Path) -> None:
    run = Run("video", unet := motion.build(), muon(unet, 0, 0), 1)
    run.save()
    assert (state / "video.safetensors").stat().st_size < 16_000_000


def test_cells_moved_to_a_device_leave_those_that_scenes_are_drawn_with() -> None:
    with pretended():
        cells = codec.Cells(codec.build())
        moved = cells.to(torch.device("cuda:0"))
        assert all(tensor.is_cuda for tensor in vars(moved).values())
        assert not any(tensor.is_cuda for tensor in vars(cells).values())


def test_workers_beside_each_other_go_on_from_the_mean_of_their_weights(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MEET_EVERY", 2)
    models = [nn.Linear(4, 4), nn.Linear(4, 4)]
    apart = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    # At a rate of nothing, so that meeting is all that happens to them.
    runs = [Run("part", model, muon(model, 0, 0), 1, worker=number) for number, model in enumerate(models)]
    learn(runs[0], 2)
    learn(runs[1], 1)
    assert same(models[0].state_dict(), apart[0]) and same(models[1].state_dict(), apart[1])
    learn(runs[1], 1)
    assert same(
        models[1].state_dict(), {name: (apart[0][name] + apart[1][name]) / 2 for name in apart[0]}, 1e-6
    )
    runs[1].save()
    assert not (state / "part.pt").exists() and not runs[1].due(-1), "the first worker keeps the checkpoints"


def test_a_worker_that_is_gone_is_not_waited_for(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEET_EVERY", 1)
    other, left = nn.Linear(4, 4), nn.Linear(4, 4)
    learn(Run("part", other, muon(other, 0, 0), 1, worker=1), 1)
    before = {name: value.clone() for name, value in left.state_dict().items()}
    monkeypatch.setattr(loop, "GONE_S", -1)
    learn(Run("part", left, muon(left, 0, 0), 1, worker=0), 1)
    assert same(left.state_dict(), before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in every training: sums of several threads are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_batches_are_the_same_however_many_processes_draw_them(one_thread: None) -> None:
    with Ahead(CropDrawer(2), 0, 40) as here, Ahead(CropDrawer(2), 2, 40) as ahead:
        for _ in range(3):
            assert torch.equal(here.next(), ahead.next())


class News:
    def __init__(self) -> None:
        self.read_by: set[threading.Thread] = set()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self.read_by.add(threading.current_thread())
        return dict, ()


def test_drawers_are_told_what_held_when_they_were_asked() -> None:
    news = News()
    with Ahead(CropDrawer(2), 1, 40) as ahead:
        ahead.next(news)
    assert news.read_by == {threading.current_thread()}, "read later, it may be half changed"


def test_products_are_in_bfloat16_on_the_card_too() -> None:
    with pretended():
        device = torch.device("cuda:0")
        with in_bfloat16(device):
            made = nn.Linear(4, 4).to(device)(torch.ones(1, 4, device=device))
        assert made.dtype == torch.bfloat16


def film_loss(device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    unet = motion.build().to(device)
    clips = Clips(
        clean=torch.randn(2, 5, codec.CHANNELS, 9, 16),
        picture=torch.randn(2, codec.CHANNELS, 9, 16),
        embedding=torch.randn(2, 1, vision.WIDTH),
        frames=torch.arange(10).view(2, 5),
        buckets=torch.full((2,), 127.0),
        scenes=[None, None],
    ).to(device)
    cells = codec.Cells(codec.build()).to(device)
    motion.choose(motion.let_choose(unet), clips.frames)
    made = train_video.guess_of(unet, cells, clips)
    assert train_video.outcomes(made, clips) == []
    loud = train_video.loudness(cells, 0.7)
    return unet, train_video.penalty(made, clips.clean, train_video.change_of(clips), loud)


def first_frame_loss(device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    unet, tokenizer = picture.build().to(device), tokens()
    words = train_picture.Words(tokenizer, text.build(tokenizer).to(device))
    latents = torch.randn(2, 2, codec.CHANNELS, 9, 16)
    return unet, train_picture.loss_of(unet, words, (["a red ball", ""], *latents), device)


def text_loss(device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    tokenizer, rng = tokens(), random.Random(1)
    tower, kept = (Tower(text.build(tokenizer), text.HIDDEN).to(device) for _ in range(2))
    loss = train_text.loss_of(tower, tokenizer, rng)
    return tower, loss + train_text.drift_of(tower, kept, tokenizer, rng)


def vision_loss(device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    tower, kept = (Tower(vision.build(), vision.WIDTH).to(device) for _ in range(2))
    drawn = torch.rand(2, 3, vision.SIDE, vision.SIDE), torch.zeros(2, 4, dtype=torch.long)
    return tower, train_vision.loss_of(tower, kept, drawn, anchor=1)


def codec_loss(device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    vae = codec.build().to(device)
    vae.encoder.requires_grad_(False)
    pictures = torch.rand(2, 3, 224, 224).to(device)
    latents = train_codec.worn(codec.Cells(vae).encode(pictures))
    return vae, train_codec.loss_of(train_codec.drawn_again(vae, latents), pictures)


def tokens() -> text.CLIPTokenizer:
    return text.CLIPTokenizer.from_pretrained(loop.WEIGHTS / "text_to_image" / "tokenizer")


@pytest.mark.parametrize("loss_of", [film_loss, first_frame_loss, text_loss, vision_loss, codec_loss])
def test_a_step_is_taken_with_every_tensor_on_the_card(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss_of: Callable[[torch.device], tuple[nn.Module, torch.Tensor]],
) -> None:
    with pretended():
        model, loss = loss_of(torch.device("cuda:0"))
        run = run_of(model)

        def backward(loss: torch.Tensor) -> None:
            """What autograd does needs a real card."""
            assert loss.device == torch.device("cuda:0") and loss.requires_grad
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        run.learn(loss)
    assert run.step == 1


def test_the_rate_falls_at_the_end_unless_another_run_follows(state: Path) -> None:
    for cooldown, last in ((0.4, 0.05), (0, 1)):
        run = run_of(nn.Linear(4, 4))
        run.cooldown, run.step, run.started = cooldown, 1000, run.started - 59.9
        assert run.rate() == pytest.approx(last, abs=0.01)
