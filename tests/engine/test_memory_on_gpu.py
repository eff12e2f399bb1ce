"""Small cards on a real GPU; never run by us so far."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from stillmotion.engine import Engine
from stillmotion.engine.memory import Movable
from stillmotion.types import Assignment
from tests.engine import tiny_pictures
from tests.engine.test_memory import decoder, hooked, made, profile
from tests.engine.test_picture_pipelines import profile as pictures

Assign = Callable[..., Assignment]


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda:0")


@pytest.mark.gpu
def test_films_of_presets_with_equal_chunks_have_equal_bytes(
    cuda: torch.device, kl_folder: Path, assign: Assign
) -> None:
    films: set[bytes] = set()
    for preset in ("whole", "part", "none"):
        engine = Engine(profile(), kl_folder, str(cuda), memory_preset=preset)
        films |= {made(engine, assign())[1] for _ in range(2)}
        for part in engine.memory.parts.values():
            where = {tensor.device.type for module in part.modules for tensor in module.parameters()}
            assert where == {"cuda" if part.here else "cpu"}
    assert len(films) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", tiny_pictures.PIPELINES)
def test_first_frames_are_drawn_while_the_parts_of_their_pipelines_come_and_go(
    cuda: torch.device, kl_folder: Path, tmp_path: Path, assign: Assign, name: str
) -> None:
    shutil.copytree(kl_folder, tmp_path / "weights")
    tiny_pictures.write(name, tmp_path / "weights" / name)
    engine = Engine(pictures(name), tmp_path / "weights", str(cuda))
    assert len({made(engine, assign())[1] for _ in range(2)}) == 1
    assert not any(part.here for part in engine.memory.parts.values())


@pytest.mark.gpu
def test_a_part_that_leaves_frees_its_memory_and_waits_page_locked(cuda: torch.device) -> None:
    network = nn.Linear(4096, 4096, device=cuda).requires_grad_(False)
    before, part = torch.cuda.memory_allocated(cuda), Movable((network,), cuda)
    part.leave()
    assert torch.cuda.memory_allocated(cuda) <= before - 4096 * 4096 * 4
    assert network.weight.is_pinned()
    wanted = network.weight.clone()
    part.come()
    assert network.weight.is_cuda
    assert torch.equal(network.weight.cpu(), wanted)


@pytest.mark.gpu
def test_auto_goes_by_its_free_memory_and_the_second_try_by_a_real_want_of_it(
    cuda: torch.device, kl_folder: Path, assign: Assign
) -> None:
    free, total = torch.cuda.mem_get_info(cuda)
    first, second = profile().memory[0], profile().memory[1]
    tight = replace(profile(), memory=(replace(first, needs_gib=1 + free / 2**30), second))
    engine = Engine(tight, kl_folder, str(cuda))
    assert engine.memory.preset.name == second.name

    def fill(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        torch.empty(2 * total if engine.memory.preset.name == "whole" else 1, dtype=torch.uint8, device=cuda)

    engine = Engine(profile(), kl_folder, str(cuda), memory_preset="whole")
    direct = made(Engine(profile(), kl_folder, str(cuda), memory_preset="part"), assign())[1]
    with hooked(decoder(engine), fill):
        assert made(engine, assign())[1] == direct
