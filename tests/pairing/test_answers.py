"""Thoughts and answers: what of a text is which, and what pairing makes of answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pairing_kit import FAILED, completion, only_outcome, pair_up, prompt, scores, winners

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.loading import load_config
from online_dpo.config.pairing import PairingSection
from online_dpo.errors import ConfigError
from online_dpo.pairing.answers import UNCLOSED, for_judges, read_answer, with_answers
from online_dpo.pairing.pairs import OUTCOMES
from online_dpo.pairing.score_labels import label_by_score
from online_dpo.types import Completion, Verdict

THINK = ViewSection(strip=["think"])
PREFILLED = ViewSection(strip=["think"], prefilled=True)
TWO = ViewSection(strip=["think"], tags=[{"open": "[T|*]", "close": "[/T|*]"}])
CHANNELS = ViewSection(
    tags=[{"open": "<|channel|>analysis<|message|>", "close": "<|start|>assistant<|channel|>final<|message|>"}]
)

READ = [
    (THINK, "<think>a</think>\n\nb", "b", True),
    (THINK, " b ", " b ", True),  # without a thought nothing changes
    (THINK, "a</think>b", "b", True),  # the template wrote the opening tag
    (THINK, "Well. <think>a</think> b", "Well.  b", True),
    (THINK, "<think>a</think>b<think>c</think>d", "bd", True),
    (THINK, "<think>a<think>b</think>c</think>d", "d", True),  # nested: back to the thought before
    (THINK, "<think>a <think> b</think>c", "c", True),  # the tag is mentioned within a thought
    (THINK, "<think>a</think>b</think>c", "c", True),
    (THINK, "<think></think>", "", True),
    (THINK, "<think>a", "", False),
    (THINK, "b <think>a", "b", False),
    (THINK, "<think>a</think>b<think>c", "b", False),
    (THINK, "<THINK>a</THINK>b < think >", "<THINK>a</THINK>b < think >", True),  # other texts are no tags
    (THINK, "", "", True),
    (PREFILLED, "a</think>b", "b", True),
    (PREFILLED, "a", "", False),  # no tag at all: it never came to an answer
    (PREFILLED, "", "", False),
    (PREFILLED, "<think>a</think>b", "b", True),  # the policy wrote it a second time
    (PREFILLED, "a</think>b<think>c", "b", False),
    (TWO, "[T|*]a</think>b[/T|*]c<think>d[/T|*]e</think>f", "cf", True),  # each ends with its own closing tag
    (CHANNELS, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b", True),
    (CHANNELS, "<|channel|>analysis<|message|>a<|end|>", "", False),
    (ViewSection(), "<think>a", "<think>a", True),  # a view of the whole
    (None, "<think>a", "<think>a", True),
    (THINK, "<think>" * 20_000, "", False),
    (THINK, "</think>" * 20_000 + "b", "b", True),
]


@pytest.mark.parametrize(("view", "text", "answer", "is_closed"), READ, ids=range(len(READ)))
def test_what_the_answer_is(view: ViewSection | None, text: str, answer: str, is_closed: bool) -> None:
    found = read_answer(text, view)
    assert (found.text, found.is_closed) == (answer, is_closed)
    assert all(0 <= start <= end <= len(text) for start, end in found.kept)


def answered(index: int, text: str, **options: Any) -> Completion:
    return completion(index, text=text, **options)


OPEN = Verdict(prompt_id="p", first=2, reason="the thought has no end", abstention="unclosed")
TEXTS = ("<think>x</think>one two three four", "<think>y</think>five", "<think>z")
GROUP = [answered(i, text) for i, text in enumerate(TEXTS)]


def test_judges_get_answers_and_are_not_asked_about_what_has_no_end() -> None:
    seen, settled = for_judges(GROUP, THINK)
    assert [(c.sample_index, c.text) for c in seen] == [(0, "one two three four"), (1, "five")]
    assert [c.token_ids for c in seen] == [c.token_ids for c in GROUP[:2]]
    assert settled == {"p": [OPEN]}
    scored = for_judges(GROUP, ViewSection(strip=["think"], unclosed=-7))[1]["p"]
    assert [(v.score, v.reason) for v in scored] == [(-7.0, None)]
    assert for_judges(GROUP, None) == (GROUP, {})
    assert with_answers(GROUP, None) == GROUP


def paired(
    said: list[Verdict], group: list[Completion] = GROUP, view: ViewSection | None = THINK, **options: Any
) -> Any:
    result = pair_up(group, said, view=view, **options)
    assert sum(result.outcomes.values()) == 1
    return winners(result) or only_outcome(result)


def test_what_has_no_end_makes_no_pair_unless_it_is_to_lose() -> None:
    worst = ViewSection(strip=["think"], unclosed="worst")
    said = [*scores(1.0, 2.0), OPEN]
    assert paired(said) == [(1, 0)]
    assert paired(said, view=worst) == [(1, 2)]
    # A penalty on cut answers does not turn it round, and a score of the judge cannot.
    cut = [replace(GROUP[0], finish_reason="length"), GROUP[1], GROUP[2]]
    huge = [*scores(-1e9, -1e9), OPEN]
    assert paired(huge, cut, worst, truncated="penalise", truncated_penalty=100.0) == [(1, 2)]
    # Of what the judge failed on nothing is known, not even that.
    assert paired([*scores(FAILED, "?"), OPEN], view=worst) == "judge_failed"
    # Comparisons, and two without an end, of which neither is better.
    compared = [Verdict(prompt_id="p", first=0, second=1, probability=0.9), OPEN]
    assert paired(compared, view=worst, strategy="all_pairs") == [(0, 1), (0, 2), (1, 2)]
    both = [*scores(1.0), replace(OPEN, first=1), OPEN]
    assert paired(both, view=worst, strategy="all_pairs") == [(0, 1), (0, 2)]
    assert paired([*scores(1.0, 2.0), *for_judges(GROUP, ViewSection(strip=["think"], unclosed=-7))[1]["p"]]) == [
        (1, 2)
    ]


def test_prompts_without_two_answers_are_counted_under_a_reason_of_their_own() -> None:
    both = [*scores(1.0), replace(OPEN, first=1), OPEN]
    assert paired(both) == UNCLOSED
    assert paired([*scores("?", "?"), OPEN]) == "abstained"  # two had an end, and the judge said nothing
    assert UNCLOSED not in pair_up(GROUP, scores(1.0, 2.0, 3.0)).outcomes  # without a view the table is as before
    result = pair_up(GROUP, both, view=THINK)
    assert result.outcomes == {**dict.fromkeys(OUTCOMES, 0), UNCLOSED: 1}
    assert result.counts["num_abstained_completions"] == 0
    labelled = label_by_score(
        [prompt()], GROUP, both, rules=PairingSection(labels={"type": "threshold", "value": 0.0}),
        truncated="keep", truncated_penalty=None, view=THINK,
    )  # fmt: skip
    assert {k: v for k, v in labelled.labels.items() if v} == {"desirable": 1, UNCLOSED: 2}


def test_filters_look_at_answers() -> None:
    long = "thinking of this and that and something else "
    alike = [answered(i, f"<think>{i} {long * i}</think>one two three four") for i in range(2)]
    assert paired(scores(1.0, 2.0), alike, near_duplicate=0.9) == "near_duplicates"
    assert paired(scores(1.0, 2.0), alike, duplicates="text") == "duplicates"
    assert paired(scores(1.0, 2.0), alike, near_duplicate=0.9, view=None) == [(1, 0)]
    same_thought = [answered(i, f"<think>{long}</think>{word}") for i, word in enumerate(("yes", "no"))]
    assert paired(scores(1.0, 2.0), same_thought, near_duplicate=0.5) == [(1, 0)]
    assert paired(scores(1.0, 2.0), same_thought, near_duplicate=0.5, view=None) == "near_duplicates"
    # 30 and 3 tokens, of which 3 and 3 are the answers'; and the other way round.
    lengths = [(30, 3), (3, 3)], [(30, 30), (30, 3)]
    even, uneven = (
        [replace(answered(i, "a", tokens=tuple(range(i, i + n))), answer_tokens=m) for i, (n, m) in enumerate(found)]
        for found in lengths
    )
    assert paired(scores(1.0, 2.0), even, strategy="length_controlled") == [(1, 0)]
    assert paired(scores(1.0, 2.0), uneven, strategy="length_controlled") == "length_ratio"


def test_two_without_an_end_are_no_copies_of_each_other() -> None:
    group = [answered(0, "<think>a"), answered(1, "<think>b"), answered(2, "<think>c</think>")]
    assert paired(scores(1.0, 2.0, 3.0), group, duplicates="text", near_duplicate=1.0, strategy="min_margin") == [
        (1, 0)
    ]


BASE = {"model": {"path": "m"}, "prompts": {"source": "p"}, "judge": {"type": "python", "target": "f.py:f"}}


@pytest.mark.parametrize(
    ("judge", "further", "message"),
    [
        ({"view": {"strip": ["<think>"]}}, {}, "judge.view.strip"),
        ({"view": {"tags": [{"open": "|", "close": "|"}]}}, {}, "open and close are both"),
        ({"view": {"prefilled": True}}, {}, "prefilled is true and neither"),
        ({"view": {"unclosed": "best"}}, {}, "judge.view.unclosed"),
        ({"type": "human", "target": None, "view": {"unclosed": -1}}, {}, "a score, and people compare"),
        (
            {"type": "length_penalty", "rate": 1, "target": None, "judge": {**BASE["judge"], "view": {}}},  # type: ignore[dict-item]
            {},
            "judge.view is set, and a judge inside another one sees what that one sees",
        ),
        (
            {"view": {"strip": ["think"], "unclosed": "worst"}},
            {"objective": {"type": "kto"}, "pairing": {"labels": {"type": "quantile"}}},
            "judge.view.unclosed is worst and pairing.labels is set",
        ),
    ],
)
def test_what_a_view_cannot_be(judge: dict[str, Any], further: dict[str, Any], message: str) -> None:
    section = {k: v for k, v in {**BASE["judge"], **judge}.items() if v is not None}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        load_config({**BASE, **further, "judge": section})


def test_other_judges_see_what_the_training_judge_sees_unless_they_say_otherwise() -> None:
    judge = BASE["judge"]
    config = load_config(
        {
            **BASE,
            "judge": {**judge, "view": {"strip": ["think"]}},  # type: ignore[dict-item]
            "evaluation": {
                "sets": {"a": {"source": "h"}},
                "judges": {"same": judge, "whole": {**judge, "view": {}}},  # type: ignore[dict-item]
            },
        }
    )
    assert config.view is not None
    assert config.view_of(config.evaluation.judges["same"]) == config.view
    assert config.view_of(config.evaluation.judges["whole"]) == ViewSection()
