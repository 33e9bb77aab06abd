"""What a generator asks of its engine, by an engine that only listens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actors.generator import Generator
from online_dpo.models.merging import Received


def test_the_first_push_after_a_sleep_replaces_embedding_and_head_as_well() -> None:
    """What lay in the GPU's memory may have changed meanwhile (vLLM issue 53888); later pushes trust it again."""
    asked: list[Any] = []

    def collective_rpc(method: str, args: tuple[Any, ...]) -> list[Received]:
        asked.append(args[-1])
        return [Received(digest=None)]

    generator: Any = Generator.__new__(Generator)
    generator._spec, generator._slots, generator._was_asleep = SimpleNamespace(model_folder="model"), None, False
    generator._llm = SimpleNamespace(collective_rpc=collective_rpc, reset_prefix_cache=lambda: True)
    generator._sleep = SimpleNamespace(sleep=lambda llm: None, wake=lambda llm: None)
    generator.push(None, 0)
    generator.sleep()
    generator.wake()
    generator.push(None, 1)
    generator.push(None, 2)
    assert asked == [False, True, False]
