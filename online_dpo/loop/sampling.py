"""A round's samples: by which policy they are sampled, in the round's turn or ahead of it (`overlap: 1`)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial

from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import Cursor, MixtureCursor
from online_dpo.data.mixtures import AnyPrompts
from online_dpo.loop.calls import Calls
from online_dpo.loop.candidates.writers import Writers, needs_policy
from online_dpo.loop.candidates.writing import Writing
from online_dpo.loop.coverage import check_coverage, reopen
from online_dpo.loop.draws import DrawnPrompts, draw_prompts, sampled_version, samples, training_plan
from online_dpo.loop.items import name_of_items
from online_dpo.loop.positions import Position
from online_dpo.loop.rollouts import Candidates, Collected, Rollouts, Sampling
from online_dpo.loop.stages import Event
from online_dpo.loop.verdicts import asked_again
from online_dpo.loop.weight_sync import Policy, Pusher, check_versions
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import REWARD


class RoundSampler:
    """Draws the prompts of rounds, has them sampled, and the samples judged. Holds nothing that is not in the store."""

    def __init__(
        self,
        config: RunConfig,
        prompts: AnyPrompts | None,
        calls: Calls,
        store: RunStore,
        pusher: Pusher,
        writers: Writers | None = None,
    ) -> None:
        """Nothing is sampled yet.

        Args:
            config: of the run.
            prompts: None where nothing is sampled to train on.
            calls: of the process.
            store: of the run.
            pusher: hands policies to the generators.
            writers: of candidates; None = there are none.
        """
        self.config, self.prompts, self.calls, self.writers = config, prompts, calls, writers
        self.judges = [] if config.judge is None else [REWARD]
        self.store, self.pusher = store, pusher

    def draw(
        self, store: RoundStore, cursor: Cursor | MixtureCursor, kind: str = "stage"
    ) -> Generator[Event, None, tuple[DrawnPrompts, Rollouts]]:
        """The prompts that the round samples, and what of their rollouts is committed."""
        assert self.prompts is not None
        drawn = draw_prompts(self.config, self.prompts, store, cursor)
        rollouts = Rollouts(store, drawn.prompts, self.config.generator.shard_prompts)
        work = rollouts.work(self.judges, self.config.sampling.num_samples)
        data = {"stage": "sampling", "num_prompts": len(drawn.prompts), **work}
        yield Event(kind=kind, round_index=store.index, data=data)
        return drawn, rollouts

    def policy(self, position: Position) -> Policy:
        """The policy that samples a round whose turn has come."""
        version = sampled_version(self.config, position.round_index)
        if version == position.round_index:
            return Policy(version=version, adapter=position.policy, previous=position.previous)
        # Nobody sampled it ahead. The learner has the newer policy, and the generators may hold it still.
        return Policy(version=version, adapter=position.previous, previous=position.policy, is_learners=False)

    def push(self, rollouts: Rollouts, policy: Policy) -> Iterator[Event]:
        """Hand the policy to the generators and check that they hold it, where anything is still to be sampled."""
        store = rollouts.commits.store
        if rollouts.missing or needs_policy(store, self.writers, rollouts.shards):
            yield from self.pusher.push(policy, store.index)

    def sampling(self, rollouts: Rollouts, policy: Policy) -> Sampling:
        """Of a round's prompts, by a policy."""
        index, ids = rollouts.commits.store.index, [prompt.prompt_id for prompt in rollouts.prompts]
        # People are never asked again here: their queue repeats questions by rules of its own.
        share = 0.0 if isinstance(self.config.judge, HumanJudge) else self.config.verdicts.repeated
        again = {REWARD: asked_again(share, ids, self.config.run.seed, index, REWARD)}
        plan = training_plan(self.config, index)
        return Sampling(
            self.calls,
            rollouts,
            self.pusher,
            policy,
            plan,
            judges=self.judges,
            again=again,
            candidates=self._candidates(rollouts.commits.store),
        )

    def _candidates(self, store: RoundStore) -> Candidates | None:
        writers = self.writers
        if writers is None:
            return None
        make = partial(Writing, self.config, writers, self.calls, store)
        return Candidates(unjudged=self.config.assumed_better, writing=make)

    def sample_and_judge(self, rollouts: Rollouts, policy: Policy) -> Generator[Event, None, Collected]:
        """Sample the prompts and have the samples judged, which goes on side by side."""
        store = rollouts.commits.store
        reopen(store, rollouts)
        sampling = self.sampling(rollouts, policy)
        yield from sampling.begin()
        collected = yield from sampling.finish()
        own = [completion for completion in collected.completions if completion.source is None]
        check_versions(policy.version, own, "nothing of its round is trained on")
        # A bound that is raised later is for later rounds.
        if self.judges and not store.has(name_of_items(self.config)):
            check_coverage(store, rollouts.prompts, collected, self.config.verdicts.min_coverage)
        return collected

    def sample_ahead(
        self, position: Position, cursor: Cursor | MixtureCursor
    ) -> Generator[Event, None, Sampling | None]:
        """With `overlap: 1`, begin to sample the next round by the policy that this round begins with.

        The learner trains on meanwhile, so its weights are no longer that policy's.
        """
        index = position.round_index + 1
        if not (self.config.overlap and index < self.config.run.rounds and samples(self.config, index)):
            return None
        _, rollouts = yield from self.draw(self.store.round(index), cursor, kind="sampling_ahead")
        policy = Policy(
            version=sampled_version(self.config, index),
            adapter=position.policy,
            previous=position.previous,
            is_learners=False,
        )
        yield from self.push(rollouts, policy)
        sampling = self.sampling(rollouts, policy)
        yield from sampling.begin()
        return sampling

    def settle(self, index: int, ahead: Sampling | None) -> Iterator[Event]:
        """Wait for what is sampled ahead: from here on the generators hold the next policy."""
        if ahead is not None:
            yield Event(kind="stage", round_index=index, data={"stage": "sampling"})
            yield from ahead.settle()
