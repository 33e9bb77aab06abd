"""User code as judges, the registry, the trial before the start, and the reward model against lone sequences."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_kit import LLAMA, save_tokenizer, shrink
from omegaconf import OmegaConf
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from judges.isolation.failures import RaisedInChild
from judges.protocol import Judge, Question, check_verdicts, collect_counts
from judges.registry import build, make_spec
from judges.reward.reward_model import RewardModel
from judges.trial import try_judge
from judges.user.python_judge import PointwiseJudge
from online_dpo.config.judges.hosted import PythonJudge, RewardModelJudge
from online_dpo.config.judges.section import judge_kinds
from online_dpo.config.loading import load_judges
from online_dpo.errors import JudgeError, ModelError
from online_dpo.types import Verdict

QUESTIONS = [
    Question(prompt_id="p", prompt="Say:", completions=("yes", "perhaps", "no"), metadata={"best": "no"}),
    Question(prompt_id="q", prompt="Ask:", completions=("why", "how come"), metadata={"best": "why"}),
]


def python_judge(folder: Path, source: str, name: str = "f", args: dict[str, Any] | None = None) -> Judge:
    (folder / "mine.py").write_text(source)
    section = PythonJudge(type="python", target=f"mine.py:{name}", args=args or {})
    return build(make_spec(section, field="judge", base_dir=folder))


def ask(judge: Judge, questions: list[Question] = QUESTIONS) -> list[list[Verdict]]:
    return check_verdicts(questions, asyncio.run(judge.judge(questions)))


def values(lists: list[list[Verdict]]) -> list[list[Any]]:
    return [[v.reason if v.score is None else v.score for v in verdicts] for verdicts in lists]


POINTWISE = {
    "function": "def f(prompt, completion): return len(prompt + completion)",
    "other names": "def f(x, y): return len(x) + len(y)",
    "async function": "async def f(prompt, completion): return len(prompt + completion)",
    "numpy scalar": "import numpy as np\ndef f(prompt, completion): return np.float32(len(prompt + completion))",
    "tensor": "import torch\ndef f(prompt, completion): return torch.tensor(4.0 + len(completion))",
    "hidden async": "import functools\nasync def g(p, c): return len(p + c)\ndef f(p, c): return g(p, c)",
    "class": "class f:\n  def score(self, prompt, completion): return len(prompt + completion)",
    "callable object": "class F:\n  def __call__(self, p, c): return len(p + c)\nf = F()",
    "batch": "class f:\n  def score_batch(self, prompts, completions):\n"
    "    return [len(p + c) for p, c in zip(prompts, completions)]",
    "batch before score": "class f:\n  def score(self, prompt, completion): raise OSError\n"
    "  async def score_batch(self, prompts, completions):\n"
    "    import numpy as np\n    return np.array([len(p + c) for p, c in zip(prompts, completions)])",
    "protocol": "class f:\n  async def judge(self, questions):\n"
    "    return [[q.score(i, len(q.prompt + c)) for i, c in enumerate(q.completions)] for q in questions]",
}


@pytest.mark.parametrize("form", POINTWISE)
def test_every_pointwise_form_gives_the_same_scores(form: str, tmp_path: Path) -> None:
    assert values(ask(python_judge(tmp_path, POINTWISE[form]))) == [[7.0, 11.0, 6.0], [7.0, 12.0]]


def test_metadata_args_and_abstaining(tmp_path: Path) -> None:
    source = """
from judges import Abstain
def f(prompt, completion, metadata, *, bonus=0):
    return Abstain("too long") if len(completion) > 7 else bonus + (completion == metadata["best"])
class C:
    def __init__(self, bonus): self.bonus = bonus
    def score_batch(self, prompts, completions, metadata):
        return [f(p, c, m, bonus=self.bonus) for p, c, m in zip(prompts, completions, metadata, strict=True)]
"""
    expected = [[2.0, 2.0, 3.0], [3.0, "too long"]]
    assert values(ask(python_judge(tmp_path, source, args={"bonus": 2}))) == expected
    assert values(ask(python_judge(tmp_path, source, name="C", args={"bonus": 2}))) == expected


def test_pairwise_and_list_wise(tmp_path: Path) -> None:
    source = """
from judges import Abstain
class Compare:
    def compare(self, prompt, a, b):
        return {("yes", "perhaps"): "a", ("yes", "no"): 0.25, ("perhaps", "no"): "tie"}.get((a, b), Abstain("?"))
class Rank:
    async def rank(self, prompt, completions):
        if prompt == "Ask:":
            return Abstain("no order")
        return sorted(range(len(completions)), key=lambda i: completions[i])
"""
    first, second = ask(python_judge(tmp_path, source, name="Compare"))
    assert [(v.first, v.second, v.probability) for v in first] == [(0, 1, 1.0), (0, 2, 0.25), (1, 2, 0.5)]
    assert [(v.first, v.second, v.reason) for v in second] == [(0, 1, "?")]
    # no < perhaps < yes: a score is the number of completions ranked below.
    assert values(ask(python_judge(tmp_path, source, name="Rank"))) == [[0.0, 1.0, 2.0], ["no order", "no order"]]


BROKEN = [
    ("def f(p, c): pass", "returned None for completion 0 of prompt trial"),
    ("def f(p, c): return float('nan')", "returned nan for completion 0"),
    ("def f(p, c): return float('-inf')", "returned -inf for completion 0"),
    ("def f(p, c): return 10 ** 400", "returned 1000"),
    ("def f(p, c): return '0.5'", "returned '0.5' for completion 0"),
    ("def f(p, c): return True", "returned True for completion 0"),
    ("import numpy as np\ndef f(p, c): return np.bool_(1)", "for completion 0"),
    ("def f(p, c): return [0.5]", "returned [0.5] for completion 0"),
    ("import torch\ndef f(p, c): return torch.ones(1)", "(Tensor) for completion 0"),
    ("def f(p, c):\n  raise ValueError('boo')", "raised ValueError: boo (mine.py, line 2)"),
    ("async def f(p, c): return 1 / 0", "raised ZeroDivisionError: division by zero (mine.py, line 1)"),
    ("def f(p, c): return next(iter([]))", "raised RuntimeError: raised StopIteration"),
    ("import sys\ndef f(p, c): sys.exit(3)", "raised RuntimeError: raised SystemExit: 3"),
    ("class f:\n  def score_batch(self, ps, cs): return [1.0]", "returned 1 scores for 2 completions"),
    ("class f:\n  def score_batch(self, ps, cs): return '12'", "returned '12' for 2 completions"),
    ("class f:\n  def score_batch(self, ps, cs): return [1.0, None]", "returned None for completion 1"),
    ("class f:\n  def compare(self, p, a, b): return 1.5", "returned 1.5 for completions 0 (a) and 1 (b)"),
    ("class f:\n  def compare(self, p, a, b): return 'A'", "returned 'A' for completions 0 (a) and 1 (b)"),
    ("class f:\n  def compare(self, p, a, b): return True", "returned True for completions 0 (a)"),
    ("class f:\n  def rank(self, p, cs): return [0, 0]", "returned [0, 0] for the 2 completions"),
    ("class f:\n  def rank(self, p, cs): return [1, 2]", "returned [1, 2] for the 2 completions"),
    ("class f:\n  def rank(self, p, cs): return ['0', '1']", "returned ['0', '1'] for the 2 completions"),
    ("class f:\n  async def judge(self, qs): return []", "returned 0 lists of verdicts for 1 questions"),
    ("class f:\n  async def judge(self, qs): return [[0.1, 0.2]]", "returned [0.1, 0.2] for prompt trial"),
    (
        "class f:\n  async def judge(self, qs): return [[qs[0].score(0, 1.0)]]",
        "returned no verdict on completion 1 for prompt trial",
    ),
    (
        "class f:\n  async def judge(self, qs): return [[qs[0].score(i, 1.0) for i in (0, 1, 1)]]",
        "returned two verdicts on (1, None)",
    ),
    (
        "class f:\n  async def judge(self, qs): return [[qs[0].score(i, 1.0) for i in (0, 1, 2)]]",
        "a verdict on (2, None)",
    ),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
def test_a_broken_judge_fails_its_trial(source: str, message: str, tmp_path: Path) -> None:
    """Never a label out of something that is none, and a sentence that says what came back."""
    with pytest.raises(JudgeError) as caught:
        asyncio.run(try_judge(python_judge(tmp_path, source), field="judge.target mine.py:f", chat=False))
    text = str(caught.value)
    assert text.startswith("judge.target mine.py:f was tried on two canned completions and ")
    assert message in text
    if "returned" in message and " for completion" in message:
        assert "Abstain(" in text


def test_trial_passes_good_judges_chat_messages_and_metadata(tmp_path: Path) -> None:
    source = """
from judges import Abstain
def f(prompt, completion, metadata):
    assert [m["role"] for m in prompt] == ["user"] and metadata == {"answer": 4}
    return Abstain("undecided")
"""
    judge = python_judge(tmp_path, source)
    asyncio.run(try_judge(judge, field="judge", chat=True, metadata={"answer": 4}))
    with pytest.raises(JudgeError, match="AssertionError"):
        asyncio.run(try_judge(judge, field="judge", chat=True))


def test_a_judge_that_never_returns_fails_and_the_process_can_still_exit(tmp_path: Path) -> None:
    """In a process of its own: a thread that the interpreter joins on exit would hang it after the error."""
    (tmp_path / "mine.py").write_text("import time\ndef f(p, c):\n  time.sleep(3600)\n")
    (tmp_path / "main.py").write_text(f"""
import asyncio, sys
from pathlib import Path
from judges.registry import build, make_spec
from judges.trial import try_judge
from online_dpo.config.judges.hosted import PythonJudge
section = PythonJudge(type="python", target="mine.py:f", timeout_s=0.2)
judge = build(make_spec(section, field="judge", base_dir=Path({str(tmp_path)!r})))
try:
    asyncio.run(try_judge(judge, field="judge", chat=False, timeout_s=0.2))
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
print([name for name in ("torch", "ray", "vllm", "actors") if name in sys.modules])
""")
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "JudgeError: judge was tried on two canned completions and did not return within 0.2 s; make it return, or "
        "raise its timeout_s",
        "[]",
    ], done.stderr


def test_blocking_code_leaves_the_event_loop_free() -> None:
    gate = threading.Event()

    async def main() -> list[list[Verdict]]:
        judge = PointwiseJudge(lambda prompt, completion: float(gate.wait(30)))
        task = asyncio.create_task(judge.judge(QUESTIONS))
        await asyncio.sleep(0.01)
        gate.set()  # reached only where the judge does not hold the loop
        return await task

    assert values(asyncio.run(main())) == [[1.0] * 3, [1.0] * 2]


DOCS = Path(__file__).parents[2] / "docs" / "judges.md"
EXAMPLES = re.findall(r"```python\n# mine\.py:(\w+) ?([^\n]*)\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("name", "args", "source"), EXAMPLES)
@pytest.mark.parametrize("chat", [False, True])
def test_the_documentation_s_examples_pass_their_trial(
    name: str, args: str, source: str, chat: bool, tmp_path: Path
) -> None:
    judge = python_judge(tmp_path, source, name=name, args=json.loads(args or "{}"))
    asyncio.run(try_judge(judge, field="judge", chat=chat, metadata={"answer": "yes"}))


def test_the_documentation_s_examples_are_found() -> None:
    assert [name for name, _, _ in EXAMPLES] == ["brevity", "Exact", "About", "Tournament"]
    assert len(EXAMPLES) + len(["vader.py"]) == DOCS.read_text().count("```python")


SECTIONS = re.findall(r"```yaml\n(judge:.*?)```", DOCS.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("text", SECTIONS)
def test_the_documentation_s_sections_load(text: str) -> None:
    section = load_judges(OmegaConf.to_container(OmegaConf.create(text))).judge  # type: ignore[arg-type]
    assert section is not None and section.type in judge_kinds()


def test_the_documentation_has_a_section_of_every_kind() -> None:
    assert len(SECTIONS) == DOCS.read_text().count("```yaml")
    kinds = {OmegaConf.create(text).judge.type for text in SECTIONS}
    assert kinds == set(judge_kinds())


LOADING = [
    (
        "judge.target",
        "def f(p, c): return 1",
        {"target": "mine.py"},
        "names no function or class; write path/to/file.py:name",
    ),
    ("judge.target", "", {"target": "other.py:f"}, "other.py does not exist"),
    ("judge.target", "def f(p, c)\n", {}, "mine.py does not import (line 1): SyntaxError: expected ':'"),
    ("judge.target", "f = 1\n1 / 0\n", {}, "mine.py does not import (line 2): ZeroDivisionError: division by zero"),
    ("judge.target", "import sys as f\nf.exit(2)\n", {}, "mine.py does not import (line 2): SystemExit: 2"),
    (
        "judge.target",
        "\nimport helper_of_mine as f\n",
        {},
        "(line 2): ModuleNotFoundError: No module named 'helper_of_mine'; a judge's file travels to the workers alone",
    ),
    (
        "judge.target",
        "def score(p, c): return 1",
        {"target": "mine.py:scor"},
        "nothing named scor; did you mean score?",
    ),
    ("judge.target", "def best(p, c): return 1", {}, "nothing named f; it has best"),
    ("judge.target", "f = 3", {}, "is 3, which cannot be called"),
    ("judge.target", "def f(p): return 1", {}, "cannot be called with (prompt, completion): too many positional"),
    ("judge.target", "def f(p, a, b): return 1", {}, "missing a required argument: 'b'"),
    ("judge.target", "class f: pass", {}, "has no judging method"),
    ("judge.target", "class f:\n  def scores(self, p, c): return 1", {}, "did you mean to name scores differently?"),
    (
        "judge.target",
        "class f:\n  def score(self, p, c): return 1\n  def rank(self, p, cs): return [0, 1]",
        {},
        "has score and rank, which are different kinds",
    ),
    ("judge.target", "class f:\n  def judge(self, qs): return []", {}, "write async def judge"),
    ("judge.target", "class f:\n  def compare(self, a, b): return 1", {}, "cannot be called with (prompt, a, b)"),
    ("judge.target", "class f:\n  def __init__(self): open('/nowhere/x')", {}, "FileNotFoundError"),
    ("judge.args", "class f:\n  def __init__(self, tone): pass", {}, "lacks tone, which judge.target mine.py:f needs"),
    ("judge.args", "class f:\n  def __init__(self, tone): pass", {"args": {"tune": 1}}, "tune is not an argument"),
    ("judge.args", "def f(p, c, *, tone=1): return 1", {"args": {"tune": 1}}, "did you mean tone?"),
    ("judge.target", "", {"target": "embedded:silver"}, "is not embedded; the embedded judges are gold"),
    ("judge.target", "", {"target": "judges.mine:f"}, "a file is given by its path, such as judges/mine.py:f"),
]


@pytest.mark.parametrize(("field", "source", "section", "message"), LOADING)
def test_what_cannot_be_loaded_is_one_clear_sentence(
    field: str, source: str, section: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(source)
    parsed = PythonJudge(**{"type": "python", "target": "mine.py:f", **section})
    with pytest.raises(JudgeError) as caught:
        build(make_spec(parsed, field="judge", base_dir=tmp_path))
    assert str(caught.value).startswith(field)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_travels_as_text(tmp_path: Path) -> None:
    """The worker needs no folder of the user's, and its tracebacks still show the lines."""
    folder = tmp_path / "judges"  # a name that this project's own package has too
    folder.mkdir()
    source = (
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class C:\n"
        "    weight: float = 2.0\n"
        "    def score(self, prompt, completion):\n"
        "        if not completion: raise ValueError('empty')  # é\n"
        "        return self.weight * len(completion)\n"
    )
    (folder / "mine.py").write_text(source, encoding="utf-8")
    section = PythonJudge(type="python", target="judges/mine.py:C", args={"weight": 3.0})
    packed = pickle.dumps(make_spec(section, field="judge", base_dir=tmp_path))
    (folder / "mine.py").unlink()
    spec = pickle.loads(packed)
    assert (spec.section, spec.field, spec.source) == (section, "judge", source)
    judge = build(spec)
    assert values(ask(judge)) == [[9.0, 21.0, 6.0], [9.0, 24.0]]
    with pytest.raises(RaisedInChild) as caught:
        ask(judge, [Question(prompt_id="e", prompt="", completions=("",))])
    assert (caught.value.kind, caught.value.where) == ("ValueError", "judges/mine.py, line 6")
    assert "if not completion: raise ValueError('empty')  # é" in "".join(traceback.format_exception(caught.value))


def test_dotted_targets() -> None:
    judge = build(
        make_spec(PythonJudge(type="python", target="operator:concat"), field="judge", base_dir=Path("/nowhere"))
    )
    with pytest.raises(JudgeError, match="returned 'Say:yes' for completion 0 of prompt p"):
        ask(judge)


# --- the reward model -------------------------------------------------------------------------------------------------

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


ZOO: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "pad": (lambda: LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=0, num_labels=1, **LLAMA)), {}),
    "pad is eos, in the model too": (
        lambda: LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=2, num_labels=1, **LLAMA)),
        {"pad_token": "<eos>"},
    ),
    "pad is eos, unknown to the model": (
        lambda: LlamaForSequenceClassification(shrink(LlamaConfig, num_labels=1, **LLAMA)),
        {"pad_token": "<eos>"},
    ),
    "left padding, absolute positions": (
        lambda: GPT2ForSequenceClassification(shrink(GPT2Config, n_positions=128, num_labels=1)),
        {"padding_side": "left"},
    ),
    "encoder, two labels": (
        lambda: BertForSequenceClassification(
            shrink(BertConfig, pad_token_id=0, num_labels=2, intermediate_size=64, max_position_embeddings=128)
        ),
        {},
    ),
    "soft cap": (  # which SDPA would drop
        lambda: Gemma2ForSequenceClassification(
            shrink(
                Gemma2Config, pad_token_id=0, num_labels=1, head_dim=16, num_key_value_heads=1,
                attn_logit_softcapping=2.0, **LLAMA,
            )
        ),
        {},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny reward models with large random heads, made on demand."""
    root = tmp_path_factory.mktemp("reward-models")

    def get(name: str) -> Path:
        folder = root / name.replace(" ", "-").replace(",", "")
        if not folder.exists():
            make, options = ZOO[name]
            torch.manual_seed(0)
            model = make()
            for parameter in model.parameters():
                if parameter.ndim > 1:  # the usual initialisation makes scores that hardly differ
                    torch.nn.init.normal_(parameter, std=0.5)
            model.save_pretrained(folder)
            save_tokenizer(folder, chat_template=TEMPLATE, **options)
        return folder

    return get


CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
MIXED = [
    Question(prompt_id="a", prompt="Once", completions=(" upon a time there was", "", " more", " more", " end<eos>")),
    Question(prompt_id="b", prompt=CHAT, completions=("Hi!", "Good day to you, stranger.", "No<eos>")),
    Question(prompt_id="c", prompt="Twice upon", completions=(" an afternoon", " x<eos><eos>")),
]


def lone_score(folder: Path, kind: type, question: Question, completion: str, limit: int = 128) -> float:
    """The score by the book: ids written by hand, one unpadded sequence, the model as it was saved."""
    if isinstance(question.prompt, str):
        text, ids = question.prompt + completion, [1]
    else:
        text = "".join(f"{m['role']}: {m['content']}<eos>" for m in question.prompt)
        text, ids = f"{text}assistant: {completion}<eos>", [1]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    for i, part in enumerate(text.split("<eos>")):
        ids += [2] * (i > 0) + [3 + letters.index("Ġ" if c == " " else c) for c in part]
    if len(ids) > limit:
        ids = [1, *ids[len(ids) - limit + 1 :]]
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return float(logits[0] if len(logits) == 1 else torch.log(logits.softmax(-1)[1] / logits.softmax(-1)[0]))


KINDS = {
    "LlamaForSequenceClassification": LlamaForSequenceClassification,
    "GPT2ForSequenceClassification": GPT2ForSequenceClassification,
    "BertForSequenceClassification": BertForSequenceClassification,
    "Gemma2ForSequenceClassification": Gemma2ForSequenceClassification,
}


@pytest.mark.parametrize("name", ZOO)
def test_scores_are_those_of_lone_sequences(name: str, zoo: Callable[[str], Path]) -> None:
    folder = zoo(name)
    kind = KINDS[json.loads((folder / "config.json").read_text())["architectures"][0]]
    expected = [[lone_score(folder, kind, q, c) for c in q.completions] for q in MIXED]
    assert len({round(s, 3) for scores in expected for s in scores}) >= 8, "the scores tell the completions apart"
    for batch_tokens in (1, 100, 8192):
        judge = RewardModel(str(folder), batch_tokens=batch_tokens)
        for found, wanted in zip(values(ask(judge, MIXED)), expected, strict=True):
            assert found == pytest.approx(wanted, abs=2e-4)


def test_batches_stay_within_their_tokens_and_sorting_keeps_the_owners(zoo: Callable[[str], Path]) -> None:
    judge = RewardModel(str(zoo("pad")), batch_tokens=60)
    shapes = []
    judge._scorer._model.register_forward_pre_hook(
        lambda m, a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    ask(judge, MIXED)
    assert sum(rows for rows, _ in shapes) == 10
    assert all(rows * width <= 60 or rows == 1 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    assert len(shapes) < 10


def test_calls_that_nobody_waits_for_any_more_do_not_pile_up(zoo: Callable[[str], Path]) -> None:
    judge, before = RewardModel(str(zoo("pad"))), threading.active_count()

    async def give_up() -> None:
        for _ in range(4):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await judge.judge(MIXED)

    with judge._lock:  # as a forward pass that takes long
        asyncio.run(give_up())
        assert threading.active_count() > before
        deadline = time.monotonic() + 10
        while threading.active_count() > before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(ask(judge, MIXED)) == 3


def test_long_inputs_lose_the_start_of_the_prompt(zoo: Callable[[str], Path]) -> None:
    folder = zoo("pad")
    prompt = "".join(chr(97 + i % 26) for i in range(40))
    question = Question(prompt_id="a", prompt=prompt, completions=(" yes", " no, not at all", " x" * 30))
    judge = RewardModel(str(folder), max_tokens=48)
    with collect_counts() as counts:
        (found,) = values(ask(judge, [question]))
    wanted = [lone_score(folder, LlamaForSequenceClassification, question, c, limit=48) for c in question.completions]
    assert found == pytest.approx(wanted, abs=2e-4)
    assert counts == {"num_truncated_judge_inputs": 2}


def test_bfloat16_is_close_and_repeats_bit_for_bit(zoo: Callable[[str], Path]) -> None:
    folder = str(zoo("pad"))
    exact = [s for scores in values(ask(RewardModel(folder), MIXED)) for s in scores]
    first, second = (values(ask(RewardModel(folder, dtype="bfloat16"), MIXED)) for _ in range(2))
    assert first == second
    rough = [s for scores in first for s in scores]
    assert rough != exact
    assert torch.corrcoef(torch.tensor([exact, rough]))[0, 1] > 0.98


def test_unusable_reward_models_are_refused(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    def refuse(folder: Path, kind: type[Exception] = JudgeError, **options: Any) -> str:
        section = RewardModelJudge(type="reward_model", path=str(folder), **options)
        with pytest.raises(kind) as caught:
            spec = make_spec(section, field="judge", base_dir=tmp_path)
            asyncio.run(try_judge(build(spec), field=spec.label, chat=True))
        return str(caught.value)

    LlamaForCausalLM(shrink(LlamaConfig, pad_token_id=0, **LLAMA)).save_pretrained(tmp_path / "causal")
    save_tokenizer(tmp_path / "causal")
    assert "has no weights for score.weight" in refuse(tmp_path / "causal", ModelError)
    three = LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=0, num_labels=3, **LLAMA))
    three.save_pretrained(tmp_path / "three")
    save_tokenizer(tmp_path / "three")
    assert "has 3 labels" in refuse(tmp_path / "three")
    one = LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=0, num_labels=1, **LLAMA))
    one.save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain")
    assert "has no chat template" in refuse(tmp_path / "plain")
    assert "judge.max_tokens is 129 and the model has 128 positions" in refuse(zoo("pad"), max_tokens=129)
    one.save_pretrained(tmp_path / "padless")
    save_tokenizer(tmp_path / "padless", pad_token=None)
    assert "has no pad token" in refuse(tmp_path / "padless", ModelError)
    assert refuse(tmp_path / "missing", ModelError).startswith("judge.path is ")
