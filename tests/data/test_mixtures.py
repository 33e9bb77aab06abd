"""Several data sets of prompts: how many of each a round gets, which ones, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_kit import make_tokenizer, write_rows

from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.resuming import check_resumable
from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import Cursor, read_cursor
from online_dpo.data.mixtures import (
    PromptMixture,
    allot,
    load_evaluation_sets,
    load_prompts,
    most_of_a_round,
    whole_numbers,
)
from online_dpo.data.prompts import validate_source
from online_dpo.errors import ConfigError, DataError

TOKENIZER = make_tokenizer()
COMMON: dict[str, Any] = {"tokenizer": TOKENIZER, "max_tokens": 64, "chat_template_kwargs": {}, "seed": 3}


def configured(sources: Sequence[dict[str, Any]], **sections: Any) -> RunConfig:
    return load_config({**BASE, "prompts": {"sources": list(sources)}, **sections})


def mixture(*sources: dict[str, Any]) -> PromptMixture:
    found = load_prompts(configured(sources), **COMMON)
    assert isinstance(found, PromptMixture)
    return found


def source(folder: Path, name: str, *prompts: Any, **options: Any) -> dict[str, Any]:
    rows = [prompt if isinstance(prompt, dict) else {"prompt": prompt} for prompt in prompts]
    return {"source": str(write_rows(folder / f"{name}.jsonl", rows)), **options}


# ---- how many of each


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e6) | st.sampled_from([0.1, 0.2, 0.3, 1.0]), min_size=1, max_size=7),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_after_every_prompt_each_data_set_has_its_exact_share_rounded(weights: list[float], rounds: list[int]) -> None:
    """Would catch shares that drift over rounds, or that depend on where a round ends."""
    numbers = whole_numbers(weights)
    assert [Fraction(n, sum(numbers)) for n in numbers] == [
        Fraction(repr(w)) / sum(Fraction(repr(v)) for v in weights) for w in weights
    ]
    drawn = [0] * len(numbers)
    sequence: list[int] = []
    for n in rounds:
        for chosen in allot(numbers, drawn, n):
            sequence.append(chosen)
            drawn[chosen] += 1
            for given_out, number in zip(drawn, numbers, strict=True):
                exact = Fraction(len(sequence) * number, sum(numbers))
                assert floor(exact) <= given_out <= ceil(exact)
    assert sequence == allot(numbers, [0] * len(numbers), sum(rounds))


def test_shares_that_come_out_even_do_so_in_every_round() -> None:
    assert whole_numbers([0.7, 0.2, 0.1]) == [7, 2, 1]
    drawn = [0, 0, 0]
    for _ in range(20):
        order = allot([7, 2, 1], drawn, 10)
        assert Counter(order) == {0: 7, 1: 2, 2: 1}
        drawn = [before + order.count(i) for i, before in enumerate(drawn)]
    assert drawn == [140, 40, 20]
    assert most_of_a_round([1, 1], 3, 4) == [2, 2] and most_of_a_round([1, 1], 4, 9) == [2, 2]
    assert allot(whole_numbers([1e-300, 1.0]), [0, 0], 5) == [1] * 5


# ---- which ones


def test_rounds_take_each_prompt_of_a_data_set_once_an_epoch_and_any_cursor_goes_on(tmp_path: Path) -> None:
    parts = [
        source(tmp_path, "maths", *"abcdefg", "", "far too long", weight=3, max_tokens=4),
        source(tmp_path, "code", *"klm", weight=1),
    ]
    mixed = mixture(*parts)
    cursor: Any = Cursor()
    seen: dict[str, list[str]] = {"maths": [], "code": []}
    passed_over: Counter[str] = Counter()
    for _ in range(21):
        drawn = mixed.draw(cursor, 4)
        assert len({p.prompt_id for p in drawn.prompts}) == 4
        assert Counter(p.metadata["domain"] for p in drawn.prompts) == {"maths": 3, "code": 1}
        for prompt in drawn.prompts:
            name, _, number = prompt.prompt_id.partition("/")
            assert prompt.text == ("abcdefg" if name == "maths" else "klm")[int(number)]
            seen[name].append(prompt.text)
        passed_over.update(drawn.passed_over)
        again = mixture(*parts).draw(read_cursor(json.loads(json.dumps(cursor.to_dict(), sort_keys=True))), 4)
        assert again == drawn
        assert drawn.sources["maths"]["num_drawn"] == len(seen["maths"])
        cursor = drawn.cursor
    # Where a round reaches into the next epoch, a prompt that it has already moves within that epoch only.
    for name, letters in (("maths", "abcdefg"), ("code", "klm")):
        epochs = ["".join(seen[name][start : start + len(letters)]) for start in range(0, 21, len(letters))]
        assert {"".join(sorted(epoch)) for epoch in epochs} == {letters} and len(set(epochs)) > 1
    assert all(8 <= passed_over[reason] <= 10 for reason in ("too_long", "empty")) and passed_over["duplicate"] == 0
    assert [round(drawn.sources[name]["epochs"]) for name in ("maths", "code")] == [9, 7]


def test_ids_are_unique_where_data_sets_share_a_domain_and_ids(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": f"a{i}"} for i in range(2)], [{"id": i, "prompt": f"b{i}"} for i in range(2)]
    parts = [source(tmp_path, f"s{k}", *found, domain="x") for k, found in enumerate(rows)]
    drawn = mixture(*parts).draw(Cursor(), 4)
    assert {(p.prompt_id, p.text) for p in drawn.prompts} == {
        ("x/0", "a0"), ("x/1", "a1"), ("x:2/0", "b0"), ("x:2/1", "b1")
    }  # fmt: skip
    assert {p.metadata["domain"] for p in drawn.prompts} == {"x"}


def test_a_prompt_of_two_data_sets_is_drawn_from_the_first_alone(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("hi", "ho")]
    mixed = mixture(source(tmp_path, "a", "one", "two"), source(tmp_path, "b", " two\n", "three", "three", "Two"))
    usable = {name: found.count() for name, found in mixed.sources.items()}
    assert [p.text for p in usable["b"].prompts] == ["three", "three", "Two"]
    assert usable["b"].passed_over == {"too_long": 0, "empty": 0, "duplicate": 1}
    assert usable["a"].passed_over["duplicate"] == 0
    mixed = mixture(
        source(tmp_path, "c", *({"prompt": chat} for chat in chats)),
        source(tmp_path, "d", {"messages": [*chats[1], {"role": "assistant", "content": "x"}]}, {"messages": chats[0]}),
    )
    assert not mixed.sources["d"].count().prompts


def test_domains_of_a_column(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "topic": topic, "n": i} for i, topic in enumerate(["sea", "land", 7])]
    mixed = mixture(source(tmp_path, "a", *rows, domain_field="topic"), source(tmp_path, "b", "x", "y", domain="sea"))
    found = {p.text: p.metadata for p in mixed.sources["a"].count().prompts}
    assert found["p2"] == {"topic": 7, "n": 2, "domain": "7"} and found["p0"]["domain"] == "sea"
    sets = {
        "one": source(tmp_path, "e", *rows, domain_field="topic", count=2),
        "many": {
            "sources": [
                source(tmp_path, "f", "u", "v", "w", count=2),
                source(tmp_path, "g", {"prompt": "z", "domain": "sea"}, domain_field="domain", count=1),
            ]
        },
    }
    loaded = load_evaluation_sets(configured([{"source": "p"}], evaluation={"sets": sets}), **COMMON)
    assert [(p.prompt_id, p.metadata["domain"]) for p in loaded["one"]] == [("000000", "sea"), ("000001", "land")]
    assert [(p.prompt_id, p.metadata["domain"]) for p in loaded["many"]] == [
        ("f/000000", "f"), ("f/000001", "f"), ("g/000000", "sea")
    ]  # fmt: skip


# ---- what is refused


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"prompts": {}}, r"^prompts has neither source nor sources; set source to"),
        ({"prompts": {"sources": []}}, r"^prompts has neither source nor sources"),
        ({"prompts": {"source": "p", "sources": [{"source": "q"}]}}, r"^prompts has sources, and beside them source"),
        ({"prompts": {"field": "q", "sources": [{"source": "q"}]}}, r"beside them field, which is q; each of the sour"),
        ({"prompts": {"sources": [{"source": "q"}, {}]}}, r"^prompts.sources.1.source is missing"),
        ({"prompts": {"sources": [{"source": "q", "weight": 0}]}}, r"^prompts.sources.0.weight is 0; it must be great"),
        ({"prompts": {"sources": [{"source": "q", "weight": -1}]}}, r"^prompts.sources.0.weight is -1; it must be gre"),
        ({"prompts": {"sources": [{"source": "q", "weight": float("nan")}]}}, r"sources.0.weight is NaN; it must be a"),
        ({"prompts": {"sources": [{"source": "q", "weight": float("inf")}]}}, r"sources.0.weight is Infinity; it must"),
        ({"prompts": {"sources": [{"source": "q", "column": "x"}]}}, r"^prompts.sources.0.column is not a known key"),
        ({"prompts": {"sources": [{"source": "q", "max_tokens": 513}]}}, r"prompts.max_tokens is 512, which no prompt"),
        ({"prompts": {"sources": [{"source": "a/x.jsonl"}, {"source": "b/x.parquet"}]}}, r"would both be of the domai"),
        ({"prompts": {"sources": [{"source": "a", "domain": "x", "domain_field": "y"}]}}, r"has domain x and domain_f"),
        ({"evaluation": {"sets": {"h": {"count": 3}}}}, r"^evaluation.sets.h has neither source nor sources"),
        ({"evaluation": {"sets": {"h": {"count": 3, "sources": [{"source": "a"}]}}}}, r"beside them count, which is 3"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({**BASE, **sections})


def test_names_and_what_may_change_on_resume() -> None:
    parts: list[dict[str, Any]] = [
        {"source": "openai/gsm8k", "subset": "main", "split": "test", "weight": 2},
        {"source": "data/my prompts.v2.jsonl.gz"},
        {"source": "embedded:openings/train", "domain": "film"},
    ]
    config = configured(parts)
    assert config.prompts is not None
    assert [part.name for part in config.prompts.sources] == ["gsm8k-main-test", "my-prompts.v2", "film"]
    assert load_config(json.loads(json.dumps(config.model_dump()))) == config
    assert "weight: 2.0" in dump_config(config)
    with pytest.raises(ConfigError, match=r"^prompts.sources.0.weight was 2.0 and is now 3.0\nthese fields change the"):
        check_resumable(config, configured([{**parts[0], "weight": 3}, *parts[1:]]))
    dropped, kept = ({**config.prompts.model_dump(), "contaminated": what} for what in ("drop", "keep"))
    with pytest.raises(ConfigError, match=r"^prompts.contaminated was \"warn\" and is now \"drop\"\nthese fields ch"):
        check_resumable(config, load_config({**BASE, "prompts": dropped}))
    assert len(check_resumable(config, load_config({**BASE, "prompts": kept}))) == 1
    with pytest.raises(ConfigError, match=r"prompts.sources.2.source was .* and is now null"):
        check_resumable(config, configured(parts[:2]))


def test_overrides_name_entries_of_a_list_by_number() -> None:
    data = {**BASE, "prompts": {"sources": [{"source": "a", "weight": 2}, {"source": "${model.path}/b"}]}}

    def parts(*overrides: str) -> list[tuple[str, float, str]]:
        config = load_config(data, overrides)
        assert config.prompts is not None
        return [(part.source, part.weight, part.field) for part in config.prompts.sources]

    assert parts("prompts.sources.1.weight=3", "prompts.sources[0].field=q", "prompts.per_round=2") == [
        ("a", 2.0, "q"), ("somewhere/b", 3.0, "prompt")
    ]  # fmt: skip
    assert parts("prompts.sources=[{source: c}]") == [("c", 1.0, "prompt")]
    with pytest.raises(ConfigError, match=r"^prompts.sources.2 is not there; prompts.sources is a list of 2, numbered"):
        parts("prompts.sources.2.weight=3")
    with pytest.raises(ConfigError, match=r"^prompts.sources.weight is not there; prompts.sources is a list of 2, nu"):
        parts("prompts.sources.1.weight=1", "prompts.sources.weight=3")


def refused(tmp_path: Path, *parts: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        mixed = mixture(*parts)
        mixed.check(4, 5)
        mixed.draw(Cursor(), 4)
    return str(caught.value).replace(str(tmp_path), "")


def test_data_sets_that_are_refused(tmp_path: Path) -> None:
    good = source(tmp_path, "good", *"abcdef")
    assert refused(tmp_path, good, source(tmp_path, "b", {"question": "x"})).startswith(
        "prompts.sources.1.source is /b.jsonl; line 1 has no column prompt, it has question: set "
        "prompts.sources.1.field to"
    )
    assert refused(tmp_path, good, source(tmp_path, "b")).startswith("prompts.sources.1.source is /b.jsonl, which has ")
    assert refused(tmp_path, good, source(tmp_path, "b", *"abcdef", weight=2)) == (
        "b is 66.7% of the mixture, up to 3 of a round of 4 different prompts; prompts.per_round is 4, but "
        "prompts.sources.1.source is /b.jsonl, which has 0 usable prompts (0 are longer than prompts.max_tokens, "
        "which is 64, and 0 are empty, 6 are in a source before it); lower prompts.per_round to 0 or add prompts"
    )
    with pytest.raises(DataError, match=r"prompts.sources.0 holds plain text and prompts.sources.1 holds chats, which"):
        mixture(good, source(tmp_path, "b", {"prompt": [{"role": "user", "content": "x"}]}))
    taken = source(tmp_path, "b", {"prompt": "x", "domain": "own"})
    assert "has a column domain, and judges would find b in its place: set prompts.sources.1.domain_field to" in (
        refused(tmp_path, good, taken)
    )
    blank = source(tmp_path, "b", {"prompt": "x", "topic": " "}, domain_field="topic")
    assert "topic of line 1 is blank, but a domain is text or a whole number" in refused(tmp_path, good, blank)
    lacking = source(tmp_path, "b", {"prompt": "x", "topics": "y"}, domain_field="topic")
    assert "line 1 has no column topic, it has prompt, topics: set prompts.sources.1.domain_field to" in (
        refused(tmp_path, good, lacking)
    )
    with pytest.raises(DataError, match=r"^prompts.sources.1.source is .* no column topic"):
        for field, part in configured([good, lacking]).prompt_parts.items():
            validate_source(part, field)
    many = source(tmp_path, "b", *({"prompt": "x", "n": n} for n in range(65)), domain_field="n")
    assert "whose column n has 65 different values; every domain has figures" in refused(tmp_path, good, many)


def test_a_share_that_a_later_round_cannot_have_is_refused_before_the_first(tmp_path: Path) -> None:
    """Rounds of 3 take 1 and 2 of each data set in turns; one that has 1 prompt is enough for the first round only."""
    one, three = source(tmp_path, "one", "a"), source(tmp_path, "three", *"klm", weight=1.5)
    mixture(one, three).check(2, 5)
    with pytest.raises(DataError, match=r"^one is 40.0% of the mixture, up to 2 of a round of 3 different prompts; pr"):
        mixture(one, three).check(3, 5)


def test_a_cursor_of_another_mixture_is_refused(tmp_path: Path) -> None:
    a, b = source(tmp_path, "a", *"abc"), source(tmp_path, "b", *"def")
    cursor = mixture(a, b).draw(Cursor(), 2).cursor
    with pytest.raises(DataError, match=r"^prompts.sources are a, but the run began with a, b; put them back"):
        mixture(a).draw(cursor, 2)
    alone = load_prompts(load_config({**BASE, "prompts": a}), **COMMON)
    assert alone is not None
    with pytest.raises(DataError, match=r"but the run began with a, b; put prompts.sources back"):
        alone.draw(cursor, 2)
