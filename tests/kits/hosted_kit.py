"""The loop over fakes whose judges are real: each in its host, as in a run, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loop_kit import FakeStages

from actors.judge_host import JudgeHost
from judges.registry import make_spec
from online_dpo.commands.preparing.inputs import judge_name, judge_sections
from online_dpo.config.run import RunConfig
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import counted_so_far
from online_dpo.types import Completion, Judged, Shard


class HostedStages(FakeStages):
    """Call `close` at the end."""

    def __init__(self, config: RunConfig, *, run_dir: Path | None = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.loop = asyncio.new_event_loop()
        sections = {judge_name(field): (field, section) for field, section in judge_sections(config).items()}
        counted: dict[str, Any] = {}
        if run_dir is not None and RunStore.exists(run_dir):
            with RunStore.read(run_dir) as store:
                counted = counted_so_far(store, list(sections), list(config.evaluation.sets))
        self.hosts = {
            name: JudgeHost(make_spec(section, field=field, base_dir=Path.cwd()), counted=counted.get(name))
            for name, (field, section) in sections.items()
        }

    def judged(self, judge: str, shard: Shard, completions: Sequence[Completion], again: bool) -> Judged:
        return self.loop.run_until_complete(self.hosts[judge].judge_shard(shard, completions, again))

    def close(self) -> None:
        self.loop.close()
