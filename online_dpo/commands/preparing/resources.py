"""What a run will need of GPUs and time, in words, for `online-dpo validate`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from online_dpo.commands.preparing import memory
from online_dpo.commands.preparing.hours import JUDGING_SHARE, LEARNING_SHARE, SAMPLING_SHARE, TFLOPS, Hours, hours
from online_dpo.commands.preparing.memory import ActorMemory
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError, ModelError, UserError
from online_dpo.models.locating import cached_config, is_hub_id, locate
from online_dpo.models.shapes import SHAPES, ModelShape, file_name, find_shape, read_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What an estimate is for."""

    gpu_gib: float | None = None  # of each GPU; None = of this machine's, or of a usual one
    shapes: Path | None = None  # the folder of shapes

    @classmethod
    def of(cls, config: Path, *, gpu_gib: float | None, shapes: Path | None) -> Machine:
        """As the command line has it: without a folder of shapes, the one beside the config is taken.

        Raises:
            UserError: the memory is no number, or the folder is none.
        """
        if gpu_gib is not None and not math.isfinite(gpu_gib):
            raise UserError(f"--gpu-memory is {gpu_gib}; give the GiB of a GPU, such as 79")
        if shapes is not None and not shapes.is_dir():
            raise UserError(f"--shapes is {shapes}, which is no folder; give one with files such as org--name.json")
        return cls(gpu_gib=gpu_gib, shapes=config.parent / SHAPES if shapes is None else shapes)


class Estimate:
    """Of one config. Nothing is downloaded."""

    def __init__(self, config: RunConfig, machine: Machine) -> None:
        """Nothing is read yet."""
        self._config, self._machine = config, machine
        self.shape = cache(self._shape)

    @property
    def policy(self) -> ModelShape | None:
        """Of the model that is trained; None where it is on the hub and has no file in the folder of shapes."""
        return self.shape(self._config.model.path)

    def lines(self) -> Iterator[str]:
        """Memory of each actor, GPUs in all, what does not fit, and hours; nothing where no GPU is in question."""
        gpu_gib = self._gpu_gib()
        if gpu_gib is None:
            return
        actors = memory.actors_memory(self._config, self.shape, gpu_gib)
        if self.policy is not None:
            yield f"GPUs: {memory.num_gpus(actors, self._config):g} of {gpu_gib:.0f} GiB; estimates for each of them:"
            for actor in actors:
                yield f"  {_memory(actor)}"
            for sentence in memory.too_large(actors, self._config, gpu_gib):
                yield f"  does not fit: {sentence}"
        for field, path in memory.models(self._config):
            if self.shape(path) is None:
                yield f"memory not estimated: {field} is {path}, {self._why_unknown(path)}"
        found = hours(self._config, self.shape)
        if found is not None:
            yield _time(found)

    def check(self) -> None:
        """Raises ConfigError when something does not fit its GPU; a line for each."""
        gpu_gib = self._gpu_gib()
        if gpu_gib is not None:
            actors = memory.actors_memory(self._config, self.shape, gpu_gib)
            if problems := list(memory.too_large(actors, self._config, gpu_gib)):
                raise ConfigError("\n".join(problems))

    def _gpu_gib(self) -> float | None:
        """A model on the hub is hardly meant for CPUs; a local one may be."""
        given = self._machine.gpu_gib or memory.gpu_memory_gib()
        return given or (memory.USUAL_GIB if is_hub_id(self._config.model.path) else None)

    def _shape(self, path: str) -> ModelShape | None:
        if not is_hub_id(path):
            return self._of_file(locate(path, field="the model") / "config.json", path)
        file = None if self._machine.shapes is None else find_shape(path, self._machine.shapes)
        if file is not None:
            return read_shape(file, field=path)
        cached = cached_config(path)
        return None if cached is None else self._of_file(cached, path)

    def _of_file(self, file: Path, path: str) -> ModelShape | None:
        """A model's own file; families that say their sizes in another way can run all the same."""
        try:
            return read_shape(file, field=path)
        except ModelError:
            return None

    def _why_unknown(self, path: str) -> str:
        if not is_hub_id(path):
            return "whose config.json says its sizes in a way that is not known here"
        folder = self._machine.shapes or SHAPES
        return f"and its sizes are not here; put its config.json there as {folder}/{file_name(path)}"


def _memory(actor: ActorMemory) -> str:
    parts = " + ".join(f"{gib:.1f} {name}" for name, gib in actor.parts.items() if gib >= 0.05)
    limit = "" if actor.limit_gib is None else f" of {actor.limit_gib:.1f}"
    where = f"{actor.number} x {actor.num_gpus:g} GPU" if actor.num_gpus else "on CPU"
    note = f"; {actor.note}" if actor.note else ""
    return f"{actor.name} ({where}): {actor.total:.1f}{limit} GiB = {parts}{note}"


def _time(found: Hours) -> str:
    return (
        f"hours: about {found.total:.1f} if every prompt and answer is as long as it may be (sampling "
        f"{found.sampling:.1f}, reward models beside it {found.judging:.1f}, learning {found.learning:.1f}), if "
        f"sampling reaches {SAMPLING_SHARE:.0%}, learning {LEARNING_SHARE:.0%} and judging {JUDGING_SHARE:.0%} of "
        f"{TFLOPS:g} TFLOP/s (H100); starts and pushes are not counted"
    )
