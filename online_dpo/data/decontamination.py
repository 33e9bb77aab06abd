"""Training prompts that an evaluation has as well: in the same words, or with a run of words in common.

The run is of 13 words, as for GPT-3 (arXiv:2005.14165, appendix C), which has a rule for common phrases, too: a run
that more than ten different held-out prompts have is no evidence, for it is an instruction that they all begin with.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Literal, TypeAlias

from online_dpo.config.run import RunConfig
from online_dpo.data.mixtures import AnyPrompts, PromptMixture
from online_dpo.data.preferences import PairDraw
from online_dpo.types import Message, Prompt, PromptContent

if TYPE_CHECKING:
    import numpy as np

NUM_WORDS = 13
MAX_COMMON = 10
"""A run of words that more held-out prompts have is a common phrase."""
_ROWS = 1000  # looked at together; more need more memory and are no faster
_MULTIPLIER = 0x9E3779B97F4A7C15  # any large odd number

Gram: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a training prompt has in common with a held-out one."""

    kind: Literal["exact", "words"]
    held_out: str  # the config section of the held-out prompt, such as `evaluation.sets.heldout`
    prompt_id: str  # of the held-out prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The training prompts of one data set that are held out as well."""

    field: str  # the config section of the data set
    num_rows: int  # of the data set
    num_exact: int
    num_words: int
    example: str
    is_dropped: bool

    def __str__(self) -> str:
        """One sentence."""
        then = (
            "they are left out"
            if self.is_dropped
            else "they are trained on all the same; prompts.contaminated: drop leaves them out"
        )
        return (
            f"{self.field}: {self.num_exact + self.num_words} of {self.num_rows} prompts are in an evaluation as well "
            f"({self.num_exact} in the same words, {self.num_words} with {NUM_WORDS} words in a row), such as "
            f"{self.example}; {then}"
        )


def decontaminate(
    config: RunConfig,
    prompts: AnyPrompts | None,
    sets: Mapping[str, Iterable[Prompt]],
    pairs: Mapping[str, PairDraw],
) -> tuple[Overlap, ...]:
    """Look for training prompts that are held out as well, and leave them out where the config says so.

    Args:
        config: of the run.
        prompts: to train on; nothing is drawn of them yet.
        sets: evaluation sets, by name.
        pairs: held-out pairs or demonstrations, by name.

    Returns:
        What was found, for each data set that has any.
    """
    what = "keep" if config.prompts is None else config.prompts.contaminated
    if prompts is None or what == "keep":
        return ()
    held_out = HeldOut(
        {f"evaluation.sets.{name}": found for name, found in sets.items()}
        | {f"evaluation.pairs.{name}": [item.prompt for item in draw.items] for name, draw in pairs.items()}
    )
    overlaps = []
    for source in prompts.sources.values() if isinstance(prompts, PromptMixture) else [prompts]:
        found = held_out.find(source.contents()) if held_out else {}
        if what == "drop":
            source.leave_out(found, "contaminated")
        if found:
            row, match = next(iter(found.items()))
            kinds = Counter(match.kind for match in found.values())
            overlap = Overlap(
                field=source.field,
                num_rows=len(source),
                num_exact=kinds["exact"],
                num_words=kinds["words"],
                example=f"prompt {source.prompt_id(row)}, which is prompt {match.prompt_id} of {match.held_out}",
                is_dropped=what == "drop",
            )
            overlaps.append(overlap)
    return tuple(overlaps)


class HeldOut:
    """The held-out prompts of a run, to compare training prompts with."""

    def __init__(self, prompts: Mapping[str, Iterable[Prompt]]) -> None:
        """Index them.

        Args:
            prompts: section of the config -> its prompts.
        """
        self._exact: dict[str, tuple[str, str]] = {}
        self._outlines: set[tuple[str, ...]] = set()  # of these; most prompts need no closer look
        self._vocabulary: dict[str, int] = {}
        self._grams: dict[Gram, tuple[str, str]] = {}
        frequency: Counter[Gram] = Counter()
        for field, prompt in ((field, prompt) for field, found in prompts.items() for prompt in found):
            text = asked(prompt.content)
            key = same_words(text)
            if not key or key in self._exact:
                continue
            self._exact[key] = (field, prompt.prompt_id)
            words = words_of(text)
            self._outlines.add(_outline(words))
            ids = [self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words]
            grams = {tuple(ids[start : start + NUM_WORDS]) for start in range(len(ids) - NUM_WORDS + 1)}
            frequency.update(grams)
            for gram in grams:
                self._grams.setdefault(gram, (field, prompt.prompt_id))
        for gram, number in frequency.items():
            if number > MAX_COMMON:
                del self._grams[gram]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._exact)

    def find(self, contents: Iterable[str | Sequence[Message]]) -> dict[int, Match]:
        """Row -> what its prompt has in common with a held-out one, for every row that has.

        Args:
            contents: what each row asks.
        """
        import numpy as np  # not at the top: `validate` has no use for it, and it takes a third of a second

        hashes = np.unique(_hashes(np.array(list(self._grams), dtype=np.uint64).reshape(-1, NUM_WORDS)))
        found: dict[int, Match] = {}
        rows = enumerate(contents)
        while batch := list(islice(rows, _ROWS)):
            words: dict[int, list[str]] = {}
            for row, content in batch:
                split = words_of(text := asked(content))
                place = self._exact.get(same_words(text)) if _outline(split) in self._outlines else None
                if place is not None:
                    found[row] = Match(kind="exact", held_out=place[0], prompt_id=place[1])
                elif self._grams and len(split) >= NUM_WORDS:
                    words[row] = split
            for row, place in self._in_common(words, hashes):
                found[row] = Match(kind="words", held_out=place[0], prompt_id=place[1])
        return dict(sorted(found.items()))

    def _in_common(
        self, words: Mapping[int, Sequence[str]], hashes: np.ndarray
    ) -> Iterator[tuple[int, tuple[str, str]]]:
        """Rows with the first run of words that they share, and where it is held out."""
        import numpy as np

        if not words:
            return
        lengths = np.array([len(split) for split in words.values()])
        known = map(self._vocabulary.get, chain(*words.values()), repeat(0))
        ids = np.fromiter(known, dtype=np.uint64, count=lengths.sum())
        windows = np.lib.stride_tricks.sliding_window_view(ids, NUM_WORDS)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        # A run lies within one row, and has only words that are held out somewhere.
        num_strange = np.concatenate([[0], np.cumsum(ids == 0)])
        is_possible = (num_strange[NUM_WORDS:] == num_strange[:-NUM_WORDS]) & (
            owners[: len(windows)] == owners[NUM_WORDS - 1 :]
        )
        starts = np.flatnonzero(is_possible)
        own = _hashes(windows[starts])
        starts = starts[hashes[np.searchsorted(hashes, own).clip(max=len(hashes) - 1)] == own]
        rows, taken = list(words), set[int]()
        for start in starts.tolist():
            row = rows[owners[start]]
            if row not in taken and (place := self._grams.get(tuple(windows[start].tolist()))) is not None:
                taken.add(row)
                yield row, place


def asked(content: PromptContent | Sequence[Message]) -> str:
    """What is compared of a prompt: a text, or all that the user says in a chat, without system prompts and answers."""
    if isinstance(content, str):
        return content
    return "\n".join(message["content"] for message in content if message["role"] == "user")


class _Table(dict[int, int]):
    """For `str.translate`: the characters that are left out become spaces."""

    def __init__(self, keeps: Callable[[str], bool]) -> None:
        self._keeps = keeps

    def __missing__(self, code: int) -> int:
        self[code] = code if self._keeps(chr(code)) else ord(" ")
        return self[code]


_WORDS = _Table(lambda character: unicodedata.category(character)[0] in "LNM")  # letters, numbers, marks on letters
# Signs of arithmetic stay, brackets and the factorial's among them: 3 + 4 is another question than 3 - 4.
_SENTENCES = _Table(lambda character: character not in ".,;:?\"'`´‘’“”„«»…。，；：？、")  # noqa: RUF001


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters and without any sign."""
    return _folded(text).translate(_WORDS).split()


def same_words(text: str) -> str:
    """A text without what does not make it another question: case, white space, punctuation of sentences."""
    return " ".join(_folded(text).translate(_SENTENCES).split())


def _outline(words: Sequence[str]) -> tuple[str, ...]:
    """Alike in all prompts of the same words."""
    return (words[0], words[-1], str(len(words))) if words else ()


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def _hashes(windows: np.ndarray) -> np.ndarray:
    """`[rows]` a hash of each row of `[rows, words]`; they may collide, so that what is found is compared itself."""
    import numpy as np

    found = np.zeros(len(windows), dtype=np.uint64)
    for column in windows.T:
        found = found * np.uint64(_MULTIPLIER) + column
    return found
