"""A pretend CUDA device: tensors that have a device, a shape and a number format, but no numbers.

torch's fake tensors refuse what a card refuses (operands on two devices, wrong number formats), so the
engine's own code runs on `cuda:0` wherever the tests run. What it cannot show: kernels,
memory, speed, pixels.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

import stillmotion.engine
from stillmotion.engine import loading

aten = torch.ops.aten
#: The classes' own annotations are narrower than what they take.
models: Any = diffusers
set_data: Any = vars(Tensor.__base__)["data"].__set__
ENGINE = str(Path(stillmotion.engine.__file__).parent)
GIB = 1 << 30


class Card(FakeTensorMode):
    """Notes where the host waits for the device: for a number of a tensor's, or for a copy to end."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []
        #: What `torch.cuda.set_device` was told last.
        self.current = -1

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.item.default):
            # Numbers are finite, conditions true.
            if args[0].is_cuda:
                self.wait()
            return True
        if func in (aten._to_copy.default, aten.copy_.default):
            tensors = [each for each in args if isinstance(each, FakeTensor)]
            for tensor in tensors:
                tensor.constant = None  # else torch would compute with it on the device
            kinds = {tensor.device.type for tensor in tensors}
            kinds.update({torch.device(kwargs["device"]).type} if kwargs.get("device") else ())
            if len(kinds) > 1 and not kwargs.get("non_blocking") and True not in args[2:]:
                self.wait()
        return super().dispatch(func, types, args, kwargs)

    def wait(self) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(ENGINE):
            frame = frame.f_back
        if frame is not None:
            name = frame.f_code.co_name.strip("<>").replace("genexpr", frame.f_back.f_code.co_name)  # type: ignore[union-attr]
            self.waits.append(f"{Path(frame.f_code.co_filename).stem}.{name}")


class Border(TorchFunctionMode):
    """What leaves torch is real: zeros of the same shape."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == set_data and isinstance(args[0], FakeTensor):
            args[0].fake_device = args[1].fake_device
        elif func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        elif func is torch.empty_like and kwargs.get("pin_memory"):
            return real(args[0])
        elif func is Tensor.copy_ and not isinstance(args[0], FakeTensor) and isinstance(args[1], FakeTensor):
            self._card.wait()
            return args[0]
        elif func is Tensor.__deepcopy__ and isinstance(args[0], FakeTensor):
            return args[1].setdefault(id(args[0]), faked(args[0]))
        elif func is Tensor.numpy and isinstance(args[0], FakeTensor):
            assert args[0].device.type == "cpu"
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        return func(*args, **kwargs)


def real(tensor: Tensor) -> Tensor:
    with unset_fake_temporarily():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)


def faked(tensor: Tensor) -> Tensor:
    blank = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return nn.Parameter(blank, requires_grad=False) if isinstance(tensor, nn.Parameter) else blank


def faked_network(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for table in (cast(Any, module)._parameters, cast(Any, module)._buffers):
            table.update({name: faked(tensor) for name, tensor in table.items() if tensor is not None})
    return network


def convert(self: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module's way with real tensors; fake ones it swaps, which weak references to them forbid."""
    for child in self.children():
        child._apply(change)
    for parameter in self._parameters.values():
        if parameter is not None:
            parameter.data = change(parameter)
    self._buffers.update(
        {name: change(buffer) for name, buffer in self._buffers.items() if buffer is not None}
    )
    return self


def outside(run: Callable[..., Any]) -> Callable[..., Any]:
    """Have code that needs numbers run on real tensors; what it loads becomes fake."""

    @wraps(run)
    def ran(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            made = run(*args, **kwargs)
        if isinstance(made, dict):
            return {name: faked(tensor) for name, tensor in made.items()}
        whole = made[0] if isinstance(made, tuple) else made
        for network in getattr(whole, "components", {"": whole}).values():
            if isinstance(network, nn.Module):
                faked_network(network)
        return made

    return ran


def provide_card(patch: pytest.MonkeyPatch) -> None:
    """Have torch, and what loads weights with it, believe in one card."""
    if torch.version.cuda is None:
        # torch built without CUDA has no entry for it in the table that devices are switched by.
        library = ctypes.CDLL(f"{torch.__path__[0]}/lib/libc10.so")
        guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
        guards[1] = guards[1] or guards[0]
    answers = {
        "device_count": 1,
        "mem_get_info": (140 * GIB, 141 * GIB),
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "is_available": True,
        "is_bf16_supported": True,
        "memory_allocated": 3 * GIB,
        "max_memory_allocated": 4 * GIB,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda device=None, answer=answer: answer)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        patch.setattr(torch.cuda, name, lambda device=None: None)
    patch.setattr(nn.Module, "_apply", convert)
    load = outside(loading.load_file)
    patch.setattr(
        loading,
        "load_file",
        lambda file, device: {name: tensor.to(device) for name, tensor in load(file).items()},
    )
    for kind in (transformers.PreTrainedModel, models.DiffusionPipeline):
        patch.setattr(kind, "from_pretrained", classmethod(outside(kind.from_pretrained.__func__)))
    scheduler = models.EulerDiscreteScheduler
    patch.setattr(scheduler, "__init__", outside(scheduler.__init__))
    plan = scheduler.set_timesteps

    def set_timesteps(self: Any, steps: int, device: Any = None, **more: Any) -> None:
        with unset_fake_temporarily():
            plan(self, steps, device="cpu", **more)
        self.timesteps = faked(self.timesteps).to(device)

    patch.setattr(scheduler, "set_timesteps", set_timesteps)
    patch.setattr(scheduler, "index_for_timestep", lambda self, time, schedule=None: 0)


@contextmanager
def pretended() -> Iterator[Card]:
    with pytest.MonkeyPatch.context() as patch:
        provide_card(patch)
        card = Card()
        patch.setattr(torch.cuda, "set_device", lambda device: setattr(card, "current", device))
        with card, Border(card):
            yield card
