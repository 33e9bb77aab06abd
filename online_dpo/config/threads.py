"""Thread counts: settled when a run begins, and kept when it is continued."""

from __future__ import annotations

import os
from typing import Any

from online_dpo.config.candidates.section import ChatWriter
from online_dpo.config.judges.section import hosted_judges, replace_hosted
from online_dpo.config.run import RunConfig


def resolve_threads(config: RunConfig) -> RunConfig:
    """The config with numbers in the place of `threads: auto`: results depend on them to the last bit.

    So they are recorded with the config. Judges run beside the engine and get half of the cores, because OpenMP threads
    that wait for a busy core keep it busy.
    """
    cores = len(os.sched_getaffinity(0))
    half = max(1, cores // 2)

    def settled(section: Any, number: int) -> Any:
        return section.model_copy(update={"threads": number}) if section.threads == "auto" else section

    def judge_settled(judge: Any) -> Any:
        return replace_hosted(judge, lambda _, section: settled(section, half))

    judges = {name: judge_settled(judge) for name, judge in config.evaluation.judges.items()}
    return config.model_copy(
        update={
            "generator": settled(config.generator, cores),
            "learner": settled(config.learner, max(1, cores // config.learner.num_workers)),
            "judge": None if config.judge is None else judge_settled(config.judge),
            "pairing": config.pairing.model_copy(
                update={"annotator": config.pairing.annotator and judge_settled(config.pairing.annotator)}
            ),
            "evaluation": config.evaluation.model_copy(update={"judges": judges}),
            "candidates": [settled(w, half) if isinstance(w, ChatWriter) else w for w in config.candidates],
        }
    )


def keep_recorded_threads(config: RunConfig, recorded: RunConfig) -> RunConfig:
    """The config with the recorded numbers in the place of `threads: auto`, for a run that is continued.

    A run keeps its numbers on whatever machine it is continued. Where the learner has another number of workers, they
    share out the threads that all workers had before.
    """

    def kept(section: Any, old: Any) -> Any:
        return section.model_copy(update={"threads": old.threads}) if section.threads == "auto" else section

    def judge_kept(judge: Any, old: Any) -> Any:
        before = dict(hosted_judges(old, "judge"))
        return replace_hosted(
            judge, lambda field, section: kept(section, before[field]) if field in before else section
        )

    def learner_kept(section: Any, old: Any) -> Any:
        if section.num_workers == old.num_workers or old.threads == "auto":
            return kept(section, old)
        shared_out = max(1, old.threads * old.num_workers // section.num_workers)
        return kept(section, old.model_copy(update={"threads": shared_out}))

    judges = {
        name: judge_kept(judge, recorded.evaluation.judges[name]) if name in recorded.evaluation.judges else judge
        for name, judge in config.evaluation.judges.items()
    }
    annotator = config.pairing.annotator
    before = {writer.source: writer for writer in recorded.candidates if isinstance(writer, ChatWriter)}
    writers = [
        kept(w, before[w.source]) if isinstance(w, ChatWriter) and w.source in before else w for w in config.candidates
    ]
    return config.model_copy(
        update={
            "generator": kept(config.generator, recorded.generator),
            "learner": learner_kept(config.learner, recorded.learner),
            "judge": config.judge and judge_kept(config.judge, recorded.judge or config.judge),
            "pairing": config.pairing.model_copy(
                update={"annotator": annotator and judge_kept(annotator, recorded.pairing.annotator or annotator)}
            ),
            "evaluation": config.evaluation.model_copy(update={"judges": judges}),
            "candidates": writers,
        }
    )
