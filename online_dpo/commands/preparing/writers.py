"""What writers of candidates need before a run starts: their models, the policy's tokenizer, room in its engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from judges.writers.writer import WriterSpec
from online_dpo.commands.preparing.model_checks import NamedModel
from online_dpo.config.candidates.section import ColumnWriter, ReviseWriter, TeacherWriter
from online_dpo.config.run import RunConfig
from online_dpo.data.candidates import CandidateEncoder
from online_dpo.data.encoding import AnswerEncoder
from online_dpo.data.row_formats import kind
from online_dpo.errors import DataError
from online_dpo.loop.candidates.writers import Writers
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.shapes import ModelShape
from online_dpo.types import Prompt

TEMPLATE_TOKENS = 256
"""Room for what a chat template puts around the four turns of a revision."""


def writer_specs(config: RunConfig) -> dict[str, WriterSpec]:
    """Writer's name -> what it is made of, of those that an actor hosts."""
    found = {}
    for field, section in config.hosted_writers.items():
        assert isinstance(section, TeacherWriter | ReviseWriter)
        max_tokens = config.sampling.max_tokens if section.max_tokens == "auto" else section.max_tokens
        spec = WriterSpec(section=section, field=field, max_tokens=max_tokens, seed=config.run.seed)
        found[section.source] = spec
    return found


def writer_models(config: RunConfig) -> Iterator[NamedModel]:
    """The local models of writers.

    Raises:
        ModelError: one is missing or damaged.
    """
    for field, section in config.hosted_writers.items():
        engine, name = section.engine, f"{field}.engine.path"
        if engine is not None:
            info, trusted = inspect_model(locate(engine.path, field=name), field=name), engine.trust_remote_code
            yield NamedModel(field=name, path=engine.path, info=info, trust_remote_code=trusted)


def load_writers(config: RunConfig, tokenizer: Any, model: ModelInfo, prompts: Sequence[Prompt]) -> Writers | None:
    """What has candidates written and tokenised; None where the run has no writers.

    Args:
        config: of the run.
        tokenizer: of the policy.
        model: the policy's.
        prompts: the first ones of the run. A mixture may have a column in some of its data sets alone.

    Raises:
        DataError: none of these prompts has a column that is named, or it holds no text.
        ModelError: the policy's chat template cannot write an answer after a prompt.
    """
    if not config.candidates:
        return None
    for index, section in enumerate(config.candidates):
        if isinstance(section, ColumnWriter):
            _check_column(section.column, f"candidates.{index}.column", prompts)
    ends = model.eos_token_ids
    answers = AnswerEncoder(tokenizer, config.chat_template_kwargs, eos_token_ids=ends, append_eos=True)
    encoder = CandidateEncoder(tokenizer, answers, eos_token_ids=ends, max_tokens=config.sampling.max_tokens)
    encoder.check(prompts[0], f"model.path is {config.model.path}")
    return Writers(sections=tuple(config.candidates), encoder=encoder, max_model_len=engine_tokens(config, model))


def _check_column(column: str, field: str, prompts: Sequence[Prompt]) -> None:
    found = [prompt.metadata[column] for prompt in prompts if column in prompt.metadata]
    if not found:
        known = ", ".join(dict.fromkeys(name for prompt in prompts for name in prompt.metadata)) or "none"
        raise DataError(
            f"{field} is {column}, and no prompt has such a column (there are: {known}); name the column that holds a "
            f"reference answer, or remove this writer"
        )
    if not isinstance(found[0], str | None):  # a row that differs from the others is counted when it comes up
        raise DataError(
            f"{field} is {column}, which is {kind(found[0])} in a row of the prompts; a reference answer is text: "
            f"write it as text, or name another column"
        )


def engine_tokens(config: RunConfig, model: ModelInfo | ModelShape) -> int:
    """Tokens that the policy's engines must have room for: a prompt and its answer, or a critique of it and a revision.

    A conversation that finds no room in the model's context is counted when it comes up.
    """
    needed, longest = config.max_model_len, config.sampling.max_tokens
    for section in config.candidates:
        if isinstance(section, ReviseWriter) and not section.is_hosted:
            critique = longest if section.critique_tokens == "auto" else section.critique_tokens
            asked = max(len(principle.encode()) for principle in section.principles) + len(section.revision.encode())
            both = 2 * config.max_prompt_tokens + 2 * longest + critique + asked + TEMPLATE_TOKENS
            needed = max(needed, both)
    # Beyond the switch vLLM would turn the positions of every row in another way.
    bounds = [bound for bound in (model.max_model_len, model.rope_switch) if bound is not None]
    return max(config.max_model_len, min([needed, *bounds]))
