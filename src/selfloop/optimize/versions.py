"""The weights that a policy has had: the seed's, published ones, and their running average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from selfloop.optimize.batch import Policy
from selfloop.optimize.sharding import all_like, whole
from selfloop.roles import SelfloopError


class Versions:
    """One policy's trainable tensors now, at the seed, as published, and averaged."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.version = 0
        self._seed = self._copy()
        self._published: dict[int, dict[str, torch.Tensor]] = {}
        self._average: dict[str, torch.Tensor] = {}
        self.serves_average = False
        """Whether the next version to be published is the average (Optim.publish)."""
        self._served: dict[str, torch.Tensor] = {}
        """The weights of `version` where they are not the current ones: an average."""

    def _copy(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.policy.trainable().items():
                parameter.copy_(tensors[name])

    def publish(self, version: int, keep: int) -> None:
        """Name the current weights, or their average; with keep > 0 older versions stay."""
        if keep > 0 and self.version != version and self.version not in self._published:
            raise SelfloopError(
                f"version {self.version} was overwritten before {version} was published")
        self.version = version
        average = self._average if self.serves_average else {}
        self._served = {name: x.clone() for name, x in average.items()}
        if keep > 0:
            self._published[version] = self._served or self._copy()
            for old in [v for v in self._published if v < version - keep]:
                del self._published[old]

    @contextmanager
    def at_version(self, version: int | str) -> Iterator[None]:
        """Run with other weights: "current", "seed", "ema" or a published number.

        "ema" is the current weights until a loss or Optim.ema has asked for an average. The
        newest number is the current weights, too, unless their average was published.
        """
        if version == "current" or (version == "ema" and not self._average) \
                or (version == self.version and not self._served):
            yield
            return
        tensors = {"seed": self._seed, "ema": self._average,
                   str(self.version): self._served}.get(str(version)) \
            or self._published.get(int(version))
        if tensors is None:
            raise SelfloopError(
                f"asked for policy version {version}, but the engine holds {self.version}"
                f"{' and ' + str(sorted(self._published)) if self._published else ''}"
            )
        now = self._copy()
        self._put(tensors)
        try:
            yield
        finally:
            self._put(now)

    def _average_in(self, decay: float, before: Mapping[str, torch.Tensor]) -> None:
        """average <- decay average + (1 - decay) weights; it starts at the weights `before`."""
        with torch.no_grad():
            self._average = self._average or dict(before)
            for name, now in self.policy.trainable().items():
                self._average[name].lerp_(now, 1 - decay)

    def _forget(self) -> None:
        self._put(self._seed)
        self.version, self._published, self._average, self._served = 0, {}, {}, {}
        self.serves_average = False

    def _save_weights(self, folder: Path) -> dict[str, Any]:
        """Safetensors files; returns what has to be known to load them."""
        # What the version is stands first, for whoever exports it; what goes on learning beside it.
        save_file(contiguous(self._served or self._copy()), folder / "trainable.safetensors")
        if self._served:
            save_file(contiguous(self._copy()), folder / "learning.safetensors")
        for version, tensors in self._published.items():
            save_file(contiguous(tensors), folder / f"published-{version}.safetensors")
        if self._average:
            save_file(contiguous(self._average), folder / "average.safetensors")
        return {"version": self.version, "published": sorted(self._published),
                "serves_average": self.serves_average}

    def _read(self, path: Path) -> dict[str, torch.Tensor]:
        return all_like(load_file(path), self.policy.trainable())

    def _load_weights(self, folder: Path, about: Mapping[str, Any]) -> None:
        named, learning = (self._read(path) if path.exists() else {} for path in (
            folder / "trainable.safetensors", folder / "learning.safetensors"))
        self._put(learning or named)
        self._served = named if learning else {}
        self.serves_average = about.get("serves_average", False)
        self.version = about["version"]
        self._published = {
            v: self._read(folder / f"published-{v}.safetensors") for v in about["published"]}
        average = folder / "average.safetensors"
        self._average = self._read(average) if average.exists() else {}


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that share no storage, as safetensors asks."""
    full = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: x.cpu().contiguous().clone() for name, x in full if x is not None}
