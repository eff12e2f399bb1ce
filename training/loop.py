"""What every training script shares: the optimizer, the moving average, checkpoints, the log and its curve.

A script resumes from `.pocket/<part>.pt`. Where averaged weights alone are at hand, or are further because
another machine made them, those of `.pocket/<part>.safetensors` or, with `--from-shipped`, of the package, it
begins with them; the optimizer's moments are then lost and a short warm-up covers for them.
"""

import argparse
import csv
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = Path("src/stillmotion/weights/pocket")
STATE = Path(os.environ.get("POCKET_STATE", ".pocket"))
WARM_UP = 60
#: Workers that train one part side by side average their weights after so many steps; one not heard of for so
#: long is gone.
MEET_EVERY = 20
GONE_S = 120


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values near one by five Newton-Schulz steps (the Muon update, Jordan 2024)."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for inner matrices and kernels, Adam for the rest."""

    def __init__(
        self, inner: list[nn.Parameter], outer: list[nn.Parameter], lr: float, adam_lr: float
    ) -> None:
        groups = [
            {"params": inner, "inner": True, "lr": lr, "peak": lr},
            {"params": outer, "inner": False, "lr": adam_lr, "peak": adam_lr},
        ]
        super().__init__([g for g in groups if g["params"]], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._inner if group["inner"] else self._outer
            for weight in group["params"]:
                if weight.grad is not None:
                    update(weight, group["lr"])

    def _inner(self, weight: nn.Parameter, lr: float) -> None:
        state = self.state[weight]
        velocity = state.setdefault("velocity", torch.zeros_like(weight))
        velocity.lerp_(weight.grad, 0.05)
        looked_ahead = weight.grad.lerp(velocity, 0.95).flatten(1)
        rows, columns = looked_ahead.shape
        update = _orthogonal(looked_ahead) * max(1.0, rows / columns) ** 0.5
        weight.mul_(1 - lr * 0.01).sub_(update.view_as(weight), alpha=lr)

    def _outer(self, weight: nn.Parameter, lr: float) -> None:
        state = self.state[weight]
        if not state:
            state.update(count=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["count"] += 1
        state["mean"].lerp_(weight.grad, 0.1)
        state["square"].lerp_(weight.grad.square(), 0.01)
        mean = state["mean"] / (1 - 0.9 ** state["count"])
        square = state["square"] / (1 - 0.99 ** state["count"])
        weight.addcdiv_(mean, square.sqrt() + 1e-8, value=-lr)


def muon(model: nn.Module, lr: float, adam_lr: float, outer: Iterable[str] = ()) -> Muon:
    """Sort a model's trainable weights: embeddings, norms, biases and the named borders go to Adam."""
    borders = tuple(outer)
    inside: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            plain = weight.ndim < 2 or "embed" in name or name.startswith(borders)
            (rest if plain else inside).append(weight)
    return Muon(inside, rest, lr, adam_lr)


def questions(minutes: float) -> argparse.ArgumentParser:
    """The options every script has."""
    ask = argparse.ArgumentParser()
    ask.add_argument("--minutes", type=float, default=minutes)
    ask.add_argument(
        "--from-shipped", action="store_true", help="begin with the shipped weights, not from nothing"
    )
    ask.add_argument(
        "--cooldown",
        type=float,
        default=0.4,
        help="share of the time, at its end, in which the rate falls; 0 if another run is to follow",
    )
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ask.add_argument(
        "--drawers", type=int, help="processes that draw batches ahead; on CUDA one a core, else none"
    )
    return ask


def begin(told: argparse.Namespace, seed: int) -> torch.device:
    """Settle what all scripts settle alike: threads, random numbers, the device and who draws."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    device = torch.device(told.device)
    if told.drawers is None:
        told.drawers = len(os.sched_getaffinity(0)) if device.type == "cuda" else 0
    return device


def in_bfloat16(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


class Run:
    """One part's training: its model, its average, its place on the clock and its files."""

    def __init__(
        self,
        part: str,
        model: nn.Module,
        optimizer: Muon,
        minutes: float,
        cooldown: float = 0.4,
        decay: float = 0.995,
        worker: int | None = None,
    ) -> None:
        #: Its number, if others train the same part beside it; 0 keeps the checkpoints.
        self.worker = worker
        self.part, self.model, self.optimizer = part, model, optimizer
        self.seconds, self.cooldown, self.decay = minutes * 60, cooldown, decay
        self.device = next(model.parameters()).device
        self.step = 0
        self.warm_from = 0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.path = STATE / f"{part}.pt"
        self.started = self.saved = time.monotonic()
        self.losses: list[float] = []
        self.asked_to_stop = False
        signal.signal(signal.SIGTERM, self._stop)
        STATE.mkdir(exist_ok=True)
        kept = last_state(self.path, self.device)
        if "model" in kept:
            self._resume(kept)
        elif kept:
            self.step = self.warm_from = kept["step"]
            self._begin_from(kept["average"])

    def _resume(self, kept: dict[str, Any]) -> None:
        self.model.load_state_dict(kept["model"])
        self.average = kept["average"]
        self.step = kept["step"]
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(kept["optimizer"])
        except ValueError:
            self.warm_from = self.step
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak  # today's rate, not the checkpoint's

    def begin_from(self, shipped: Path, prefix: str = "") -> None:
        """Start an unbegun run from shipped weights."""
        if not self.step:
            self._begin_from({prefix + k: v for k, v in load_file(shipped).items()})

    def _begin_from(self, found: dict[str, torch.Tensor]) -> None:
        whole = {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
        self.model.load_state_dict(self.model.state_dict() | whole)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    @property
    def spent(self) -> float:
        return (time.monotonic() - self.started) / self.seconds

    def _stop(self, number: int, frame: object) -> None:
        self.asked_to_stop = True

    def going(self) -> bool:
        """Whether time is left; a SIGTERM ends the run early, with its last step saved."""
        return self.spent < 1 and not self.asked_to_stop

    def rate(self) -> float:
        """Warm up, stay, then fall to a twentieth over the last part of this run's time."""
        warm = min(1.0, (self.step - self.warm_from + 1) / WARM_UP)
        left = (1 - self.spent) / self.cooldown if self.cooldown else 1.0
        return warm * max(0.05, min(1.0, left))

    def learn(self, loss: torch.Tensor) -> None:
        """Take one step and keep the books; a loss that is not finite is skipped."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            return
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())
        if self.worker is not None and self.step % MEET_EVERY == 0:
            self._meet()
        decay = min(self.decay, self.step / (self.step + 20))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _meet(self) -> None:
        """Leave this worker's weights for the others and go on with the mean of all."""
        mine = self.path.with_suffix(f".{self.worker}.safetensors")
        fresh = mine.with_suffix(".new")
        save_file(self.model.state_dict(), fresh)
        fresh.replace(mine)
        others = set(self.path.parent.glob(f"{self.part}.[0-9]*.safetensors")) - {mine}
        there = [path for path in others if time.time() - path.stat().st_mtime < GONE_S]
        met = [load_file(path, str(self.device)) for path in there]
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([value, *(weights[name] for weights in met)]).mean(0))

    def due(self, every_s: float = 150) -> bool:
        return not self.worker and time.monotonic() - self.saved > every_s

    def save(self, **figures: float) -> None:
        """Write the checkpoint (by rename, so a reader never sees half), one line of CSV and the curve."""
        if self.worker:
            return
        self.saved = time.monotonic()
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.path)
        save_file(halves(self.average), fresh, {"step": str(self.step)})
        fresh.replace(slim_of(self.path))
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        line = {"step": self.step, "seconds": round(time.process_time()), "loss": round(loss, 5)}
        line |= {k: round(v, 5) for k, v in figures.items()}
        table = STATE / f"{self.part}.csv"
        known = table.exists()
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, line)
            if not known:
                writer.writeheader()
            writer.writerow(line)
        print(time.strftime("%H:%M:%S"), self.part, line, flush=True)
        draw_curve(table)

    def with_average(self, look: Callable[[], None] | Callable[[], dict[str, float]]) -> dict[str, float]:
        """Call `look` while the model wears its averaged weights."""
        raw = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        with torch.no_grad():
            found = look() or {}
        self.model.train()
        self.model.load_state_dict(raw)
        return found


def slim_of(path: Path) -> Path:
    """Where a checkpoint's averaged weights lie alone, as halves: what travels between machines."""
    return path.with_suffix(".safetensors")


def last_state(path: Path, device: torch.device | str) -> dict[str, Any]:
    """The checkpoint, or step and average alone where these are further; empty where there is neither."""
    kept = torch.load(path, weights_only=True, map_location=device) if path.exists() else {}
    if not slim_of(path).exists():
        return kept
    with safe_open(slim_of(path), "pt") as travelled:
        step = int(travelled.metadata()["step"])
    further = step > kept.get("step", -1)
    return {"step": step, "average": load_file(slim_of(path), str(device))} if further else kept


def averaged(part: str) -> dict[str, torch.Tensor]:
    """The averaged weights of a part as its last run left them."""
    return last_state(STATE / f"{part}.pt", "cpu")["average"]


def halves(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in weights.items()}


def draw_curve(table: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with table.open() as file:
        rows = list(csv.DictReader(file))
    names = [n for n in rows[0] if n not in ("step", "seconds")]
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([int(r["step"]) for r in rows], [float(r[name] or "nan") for r in rows])
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(table.with_suffix(".png"), dpi=80)
    pyplot.close(figure)
