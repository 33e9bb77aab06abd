"""Records in parquet: exact both ways, the same bytes every time, and food for `datasets` and TRL."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_dpo.errors import DataError, WeightMismatchError
from online_dpo.loop.weight_sync import check_versions
from online_dpo.pairing.unpairing import unpair
from online_dpo.statistics.samples import sampler_logps
from online_dpo.store.run_store import RunStore
from online_dpo.store.tables import from_parquet, to_parquet
from online_dpo.types import Abstention, Completion, Labelled, Pair, Prompt, Verdict

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
SPREADS = st.none() | st.floats(0, allow_nan=False, allow_infinity=False)
LOGPS = st.none() | st.floats(max_value=0)
MESSAGES = st.lists(
    st.tuples(st.text(), st.text()).map(lambda both: {"role": both[0], "content": both[1]}), max_size=3
).map(tuple)


@st.composite
def prompts(draw: st.DrawFn, chat: bool) -> Prompt:
    content: dict[str, Any] = {"messages": draw(MESSAGES)} if chat else {"text": draw(st.text())}
    metadata = draw(st.dictionaries(st.text(), JSON, max_size=3))
    return Prompt(prompt_id=draw(st.text()), token_ids=draw(TOKENS), metadata=metadata, **content)


@st.composite
def completions(draw: st.DrawFn, prompt_id: str | None = None) -> Completion:
    token_ids = draw(TOKENS)
    logps = st.lists(st.floats(allow_nan=False), min_size=len(token_ids), max_size=len(token_ids))
    return Completion(
        prompt_id=draw(st.text()) if prompt_id is None else prompt_id,
        sample_index=draw(st.integers(0, 99)),
        token_ids=token_ids,
        text=draw(st.text()),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        sampler_logps=tuple(draw(logps)),
        policy_version=draw(st.integers(0, 10**6)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@st.composite
def written_answers(draw: st.DrawFn, prompt_id: str) -> Completion:
    """From a data set: nothing tells how it was sampled, since it was not."""
    answer = draw(completions(prompt_id))
    return replace(answer, finish_reason=None, sampler_logps=None, policy_version=None, seed=None)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    about: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {
                "score": st.floats(allow_nan=False, allow_infinity=False),
                "uncertainty": SPREADS,
                "rationale": st.none() | st.text(),
            }
        )
        | st.fixed_dictionaries({"second": st.integers(0, 9), "probability": st.floats(0, 1), "uncertainty": SPREADS})
        | st.fixed_dictionaries(
            {
                "second": st.none() | st.integers(0, 9),
                "reason": st.text(),
                "abstention": st.none() | st.sampled_from(get_args(Abstention)),
            }
        )
    )
    return Verdict(prompt_id=draw(st.text()), first=draw(st.integers(0, 9)), **about)


def has_tokens(answer: Completion) -> bool:
    return bool(answer.token_ids)


@st.composite
def pairs(draw: st.DrawFn, chat: bool) -> Pair:
    prompt, judged = draw(prompts(chat)), draw(st.booleans())
    answers = (completions if judged else written_answers)(prompt.prompt_id).filter(has_tokens)
    chosen, rejected = draw(st.tuples(answers, answers).filter(lambda both: both[0].token_ids != both[1].token_ids))
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=draw(st.floats(min_value=0, exclude_min=True)) if judged else None,
        probability=draw(st.floats(0.5, 1, exclude_min=True)) if judged else None,
        weight=draw(st.floats(0, 9)),
        chosen_ref_logps=draw(LOGPS),
        rejected_ref_logps=draw(LOGPS),
        chosen_ref_tail_logps=draw(LOGPS),
        rejected_ref_tail_logps=draw(LOGPS),
    )


@st.composite
def labelled(draw: st.DrawFn, chat: bool) -> Labelled:
    prompt = draw(prompts(chat))
    return Labelled(
        prompt=prompt,
        completion=draw(
            st.one_of(some(prompt.prompt_id) for some in (completions, written_answers)).filter(has_tokens)
        ),
        desirable=draw(st.booleans()),
        weight=draw(st.floats(0, 9)),
        kl_completion_ids=draw(TOKENS),
        ref_logps=draw(LOGPS),
        kl_ref_logps=draw(LOGPS),
    )


def test_answers_are_measured_in_a_column_of_their_own_where_there_is_a_view() -> None:
    plain = Completion(
        prompt_id="p", sample_index=0, token_ids=(1, 2), text="x", finish_reason="stop", sampler_logps=(-1.0, -1.0),
        policy_version=0, seed=1,
    )  # fmt: skip
    viewed = [replace(plain, answer_tokens=1), replace(plain, sample_index=1)]  # the second one's is not known
    assert from_parquet(to_parquet(viewed), Completion) == viewed
    assert "answer_tokens" not in pq.ParquetFile(pa.BufferReader(to_parquet([plain]))).schema_arrow.names


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_records_come_back_exactly(data: st.DataObject) -> None:
    kind, one = data.draw(
        st.sampled_from(
            [
                (Prompt, st.booleans().flatmap(prompts)),
                (Completion, completions()),
                (Verdict, verdicts()),
                (Pair, pairs(chat=False)),
                (Pair, pairs(chat=True)),
                (Labelled, labelled(chat=False)),
                (Labelled, labelled(chat=True)),
            ]
        )
    )
    records = data.draw(st.lists(one, max_size=3))
    back = from_parquet(to_parquet(records), kind)
    # repr tells -0.0 from 0.0 and 1.0 from 1, which == does not.
    assert [repr(record) for record in back] == [repr(record) for record in records]


@pytest.mark.parametrize("chat", [False, True])
def test_a_candidate_keeps_its_source_and_other_tables_have_no_such_column(chat: bool) -> None:
    pair = example_pairs(chat)[0]
    written = replace(pair.chosen, sampler_logps=None, policy_version=None, seed=None, source="teacher")
    label = Labelled(prompt=pair.prompt, completion=written, desirable=True)
    for mixed in ([replace(pair, chosen=written), pair], [written, pair.rejected], [label]):
        assert from_parquet(to_parquet(mixed), type(mixed[0])) == mixed  # type: ignore[type-var]
    names = [pq.read_schema(pa.BufferReader(to_parquet(records))).names for records in ([pair], [pair.chosen])]
    assert not [name for found in names for name in found if "source" in name]
    with pytest.raises(ValueError, match="a candidate has a finish reason, and nothing else of a sample"):
        replace(pair.chosen, source="teacher")


def example_pairs(chat: bool) -> list[Pair]:
    """Two pairs whose answers end with and without EOS."""
    found = []
    for number, (winner, loser) in enumerate([(" a fine film", " a bore"), (" it moved me", " I left early")]):
        prompt_id = f"p{number}"
        question = "The film was"
        prompt = Prompt(
            prompt_id=prompt_id,
            token_ids=(1, 5, 6),
            text=None if chat else question,
            messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": question})
            if chat
            else None,
            metadata={"stars": 4, "größe": [1.5, None]},
        )
        answers = [
            Completion(
                prompt_id=prompt_id,
                sample_index=index,
                token_ids=(7, 8 + index, 2),
                text=text,
                finish_reason="stop",
                sampler_logps=(-0.1, -2.0, -1 / 3),
                policy_version=3,
                seed=2**63 - 1 - index,
            )
            for index, text in enumerate((winner, loser))
        ]
        found.append(
            Pair(
                prompt=prompt,
                chosen=answers[0],
                rejected=answers[1],
                margin=1.25,
                probability=0.75,
                chosen_ref_logps=-7.5 if number else None,
                rejected_ref_logps=-8.25 if number else None,
            )
        )
    return found


@pytest.mark.parametrize("chat", [False, True])
def test_the_same_records_are_the_same_bytes_in_another_process(tmp_path: Path, chat: bool) -> None:
    data = to_parquet(example_pairs(chat))
    (tmp_path / "in.parquet").write_bytes(data)
    again = (
        "import sys; from pathlib import Path; from online_dpo.store.tables import Pair, from_parquet, to_parquet\n"
        "folder = Path(sys.argv[1]); records = from_parquet((folder / 'in.parquet').read_bytes(), Pair)\n"
        "(folder / 'out.parquet').write_bytes(to_parquet(records))"
    )
    result = subprocess.run([sys.executable, "-c", again, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / "out.parquet").read_bytes() == data
    assert result.stderr == ""  # pyarrow's threads must not abort the interpreter at exit


def test_pairs_are_a_preference_data_set_with_provenance(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    file.write_bytes(to_parquet(example_pairs(chat=True)))
    first, second = pq.ParquetFile(file).read(use_threads=False).to_pylist()
    assert first == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The film was"},
        ],
        "chosen": [{"role": "assistant", "content": " a fine film"}],
        "rejected": [{"role": "assistant", "content": " a bore"}],
        "margin": 1.25,
        "probability": 0.75,
        "weight": 1.0,
        "chosen_ref_logps": None,
        "rejected_ref_logps": None,
        "chosen_ref_tail_logps": None,
        "rejected_ref_tail_logps": None,
        "prompt_id": "p0",
        "prompt_token_ids": [1, 5, 6],
        "prompt_metadata": '{"stars": 4, "größe": [1.5, null]}',
        "chosen_sample_index": 0,
        "chosen_token_ids": [7, 8, 2],
        "chosen_finish_reason": "stop",
        "chosen_sampler_logps": [-0.1, -2.0, -1 / 3],
        "chosen_policy_version": 3,
        "chosen_seed": 2**63 - 1,
        "rejected_sample_index": 1,
        "rejected_token_ids": [7, 9, 2],
        "rejected_finish_reason": "stop",
        "rejected_sampler_logps": [-0.1, -2.0, -1 / 3],
        "rejected_policy_version": 3,
        "rejected_seed": 2**63 - 2,
    }
    assert (second["chosen_ref_logps"], second["rejected_ref_logps"]) == (-7.5, -8.25)


def test_an_answer_from_a_data_set_has_no_numbers_of_a_sampler() -> None:
    """Would catch zeros or empty lists where there was no sampler, half a provenance, and a committed shard of samples
    in which an answer has none: the checks of the weights read these columns."""
    [pair, _] = example_pairs(chat=False)
    unsampled = {"finish_reason": None, "sampler_logps": None, "policy_version": None, "seed": None}
    written = replace(pair, margin=None, probability=None, chosen=replace(pair.chosen, **unsampled))
    [row] = pq.read_table(pa.BufferReader(to_parquet([written, pair]))).to_pylist()[:1]
    assert {row[f"chosen_{name}"] for name in unsampled} | {row["margin"], row["probability"]} == {None}
    assert row["rejected_policy_version"] == 3 and row["rejected_sampler_logps"] == [-0.1, -2.0, -1 / 3]
    with pytest.raises(ValueError, match="only a part"):
        replace(pair.chosen, sampler_logps=None)
    with pytest.raises(ValueError, match="margin and probability come together"):
        replace(pair, margin=None)
    with pytest.raises(pa.ArrowInvalid, match="non-nullable"):
        to_parquet([written.chosen])
    with pytest.raises(ValueError, match="p0/0 was not sampled"):
        sampler_logps([written.rejected, written.chosen])
    with pytest.raises(WeightMismatchError, match="policy version None and version 0"):
        check_versions(0, [written.chosen])


def test_what_a_column_cannot_hold_is_refused_not_lost() -> None:
    def prompt(**fields: Any) -> Prompt:
        return Prompt(**{"prompt_id": "p7", "token_ids": (1,), "text": "x", **fields})

    with pytest.raises(DataError, match="prompt p7 has a message with the keys role, content, name; "):
        to_parquet([prompt(text=None, messages=({"role": "user", "content": "x", "name": "n"},))])
    with pytest.raises(DataError, match="prompt p7 has metadata that JSON cannot hold"):
        to_parquet([prompt(metadata={"rating": float("nan")})])
    with pytest.raises(ValueError, match=r"one table cannot hold \['Prompt', 'Verdict'\]"):
        to_parquet([prompt(), Verdict(prompt_id="p", first=0, score=0.5)])
    with pytest.raises(ValueError, match="both plain and chat"):
        to_parquet([*example_pairs(chat=False), *example_pairs(chat=True)])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer Llama over bytes, with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}|"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_committed_pairs_train_in_trl_as_they_are(tmp_path: Path, tiny_model: Path, chat: bool) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    with RunStore.create(tmp_path / "run", config_yaml="", info={}) as store:
        store.round(0).put_records("pairs", example_pairs(chat))
    file = tmp_path / "run/rounds/00000/pairs.parquet"
    data = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=2,
            max_steps=1,
            learning_rate=0.1,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        processing_class=tokenizer,
        train_dataset=data,
    )
    prepared = trainer.train_dataset[0]
    end = "<eos>|" if chat else "<eos>"
    assert tokenizer.decode(prepared["chosen_ids"]) == " a fine film" + end
    assert tokenizer.decode(prepared["rejected_ids"]) == " a bore" + end
    prompt = "system:Be brief.|user:The film was|assistant:" if chat else "The film was"
    assert tokenizer.decode(prepared["prompt_ids"]) == prompt
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_committed_labels_are_trl_s_unpaired_preferences(tmp_path: Path, tiny_model: Path, chat: bool) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    with RunStore.create(tmp_path / "run", config_yaml="", info={}) as store:
        store.round(0).put_records("labelled", unpair(example_pairs(chat)))
    file = tmp_path / "run/rounds/00000/labelled.parquet"
    data = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=KTOConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False
        ),
        processing_class=tokenizer,
        train_dataset=data,
    )
    end = "<eos>|" if chat else "<eos>"
    prompt = "system:Be brief.|user:The film was|assistant:" if chat else "The film was"
    found = [
        (tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["completion_ids"]), row["label"])
        for row in trainer.train_dataset
    ]
    texts = [(" a fine film", True), (" a bore", False), (" it moved me", True), (" I left early", False)]
    assert found == [(prompt, text + end, label) for text, label in texts]
