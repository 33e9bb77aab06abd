"""Where preferences come from, which of them are held out, and the token ids that the model reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.reward.inputs import cut_input, encode_input
from online_dpo.annotation.export import preference_rows
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.config.reward_model.section import PreferenceColumns, RewardModelConfig, RunPairs, VotesSection
from online_dpo.data.encoding import is_blank
from online_dpo.data.preference_files import columns_in, load_preferences, split_row
from online_dpo.errors import DataError, RunDirectoryError, UserError, first_line
from online_dpo.store.run_store import RunStore
from online_dpo.text_files import shown
from online_dpo.types import Pair, PromptContent


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two answers to a prompt, as text."""

    prompt: PromptContent
    chosen: str
    rejected: str

    @property
    def key(self) -> str:
        """What tells prompts apart."""
        return json.dumps(self.prompt, sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A preference as the model reads it."""

    preference: Preference
    chosen_ids: list[int]
    rejected_ids: list[int]
    lengths: tuple[int, int]  # of the two answers alone, in tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What is trained on and what is measured on. No prompt is on both sides."""

    training: tuple[Encoded, ...]
    heldout: tuple[Encoded, ...]
    counts: Mapping[str, Mapping[str, int]]  # place of the preferences -> what became of each of them


def prepare_sides(config: RewardModelConfig, tokenizer: Any, max_tokens: int) -> Sides:
    """Read, encode and split all preferences.

    Args:
        config: says where they are.
        tokenizer: of the model.
        max_tokens: of an input.

    Raises:
        UserError: a source cannot be read, or one side has no usable pair.
    """
    field, found, counts = _collect(config)
    usable = _encode(found, tokenizer, max_tokens, counts, field)
    told = {field: counts}
    own = config.heldout.pairs
    if own is None:
        heldout = [pair for pair in usable if _is_held_out(pair.preference, config)]
        names = {pair.preference.key for pair in heldout}
    else:
        told["heldout.pairs"] = Counter()
        read = _read_file(own, "heldout.pairs", told["heldout.pairs"])
        heldout = _encode(read, tokenizer, max_tokens, told["heldout.pairs"], "heldout.pairs")
        names = {pair.preference.key for pair in heldout}
        counts["prompt_is_held_out"] = sum(pair.preference.key in names for pair in usable)
    training = [pair for pair in usable if pair.preference.key not in names]
    for name, side in (("train on", training), ("hold out", heldout)):
        if not side:
            reasons = "; ".join(f"{place}: {_listed(number)}" for place, number in told.items())
            raise DataError(
                f"no pair is left to {name} ({reasons}); give more preferences, another heldout.share or another seed"
            )
    return Sides(training=tuple(training), heldout=tuple(heldout), counts=told)


def _is_held_out(preference: Preference, config: RewardModelConfig) -> bool:
    """By a hash, so that further rows move no prompt to the other side."""
    digest = hashlib.sha256(f"{config.seed} {preference.key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < config.heldout.share


# ---- where they are


def _collect(config: RewardModelConfig) -> tuple[str, list[Preference], Counter[str]]:
    """The field that names the place, what is there, and why how many gave none."""
    counts: Counter[str] = Counter()
    if config.pairs is not None:
        return "pairs", _read_file(config.pairs, "pairs", counts), counts
    if config.run is not None:
        return "run", list(_read_run(config.run)), counts
    assert config.votes is not None
    return "votes", _read_votes(config.votes, counts), counts


def _read_file(spec: PreferenceColumns, field: str, counts: Counter[str]) -> list[Preference]:
    table, found = load_preferences(spec, field=field), []
    spec = columns_in(spec, table.rows[0])
    for row in table.rows:
        split = split_row(row, spec)
        if isinstance(split, str):
            counts[split] += 1
            continue
        prompt = split.prompt if isinstance(split.prompt, str) else [dict(message) for message in split.prompt]
        found.append(Preference(prompt=prompt, chosen=split.answers[0], rejected=split.answers[1]))
    return found


def _read_run(spec: RunPairs) -> Iterator[Preference]:
    with RunStore.read(Path(spec.dir)) as store:
        finished = [index + 1 for index in store.finished_rounds()]
        if not finished:
            raise RunDirectoryError(f"run.dir is {spec.dir}, of which no round is finished; name another run")
        rounds = finished if spec.rounds is None else sorted(set(spec.rounds))
        if beyond := sorted({*rounds} - {*finished}):
            raise RunDirectoryError(
                f"run.rounds has {beyond[0]} and {len(finished)} rounds of {spec.dir} are finished; choose from 1 to "
                f"{len(finished)}"
            )
        for number in rounds:
            if not store.round(number - 1).has("pairs"):
                raise RunDirectoryError(
                    f"run.dir is {spec.dir}, whose objective trains on no pairs, so that it has none; name a run whose "
                    f"objective compares two answers"
                )
            for pair in store.round(number - 1).get_records("pairs", Pair):
                prompt = pair.prompt.content
                yield Preference(prompt=prompt, chosen=pair.chosen.text, rejected=pair.rejected.text)


def _read_votes(spec: VotesSection, counts: Counter[str]) -> list[Preference]:
    """A preference for each question whose answers agree on a winner, by the consensus of the run's own rules."""
    path = Path(spec.dir) / FILE
    if not path.is_file():
        raise RunDirectoryError(
            f"votes.dir is {spec.dir}, in which no people were asked; name a run with a human judge"
        )
    with AnnotationStore.open(path) as store:
        rows, left_out = preference_rows(store.snapshot())
    counts.update(left_out)

    def text(answer: Any) -> str:
        return answer if isinstance(answer, str) else answer[0]["content"]

    return [Preference(prompt=r["prompt"], chosen=text(r["chosen"]), rejected=text(r["rejected"])) for r in rows]


# ---- token ids


def _encode(
    preferences: Sequence[Preference], tokenizer: Any, max_tokens: int, counts: Counter[str], field: str
) -> list[Encoded]:
    """The usable ones, as the judge will read them; counts what became of each."""
    found = []
    for preference in preferences:
        if is_blank(preference.prompt) or not preference.chosen.strip() or not preference.rejected.strip():
            counts["empty"] += 1
            continue
        answers = (preference.chosen, preference.rejected)
        whole = [_ids(tokenizer, preference.prompt, answer, field) for answer in answers]
        chosen, rejected = (cut_input(tokenizer, ids, max_tokens) for ids in whole)
        if chosen == rejected:
            counts["equal" if whole[0] == whole[1] else "equal_when_truncated"] += 1
            continue
        counts["kept"] += 1
        counts["num_truncated_inputs"] += sum(len(ids) > max_tokens for ids in whole)
        left, right = (len(tokenizer(answer, add_special_tokens=False, verbose=False).input_ids) for answer in answers)
        found.append(Encoded(preference=preference, chosen_ids=chosen, rejected_ids=rejected, lengths=(left, right)))
    return found


def _ids(tokenizer: Any, prompt: PromptContent, answer: str, field: str) -> list[int]:
    if not isinstance(prompt, str) and tokenizer.chat_template is None:
        raise DataError(
            f"{field} has prompts that are chats, but the tokenizer of model.path has no chat template; set "
            f"model.chat_template"
        )
    try:
        return encode_input(tokenizer, prompt, answer)
    except UserError:
        raise
    # A template raises what its author chose, such as on roles that do not alternate.
    except Exception as error:
        raise DataError(
            f"{field} has the prompt {shown(json.dumps(prompt, ensure_ascii=False))}, which the chat template refuses "
            f"({first_line(error)}): correct or remove it, or set model.chat_template"
        ) from error


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items() if number) or "nothing"
