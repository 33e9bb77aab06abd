"""A reward model in vLLM's pooling runner, in the actor that hosts it as in a run, against transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_kit import LLAMA, save_tokenizer, shrink
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification
from verdict_kit import answers, shard_of

from actors.judge_host import JudgeHost
from judges.hosting import Hosting, NeedsEngine, ScorerRequest
from judges.protocol import Question
from judges.registry import make_spec
from judges.reward.reward_model import RewardModel
from online_dpo.config.judges.hosted import RewardModelJudge, ScoringEngineSection
from online_dpo.types import Judged

TEXTS = (" upon a time there was", " end<eos>", " more<eos><eos>", "", " yes" * 60)
WIDE = {"hidden_size": 64}  # heads of 32, the smallest that vLLM's attention on CPU takes
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], Any]] = {
    # What follows the model's last token that is no padding counts for nothing, a final EOS included.
    "llama": (
        lambda: LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=2, num_labels=3, **LLAMA, **WIDE)),
        {"pad_token": "<eos>"},
        [0.5, 0.0, -2.0],
    ),
    "bert": (
        lambda: BertForSequenceClassification(
            shrink(BertConfig, pad_token_id=0, num_labels=2, intermediate_size=64, max_position_embeddings=128, **WIDE)
        ),
        {"cls_token": "<bos>"},
        None,
    ),
}


def save(name: str, folder: Path) -> Path:
    make, options, _ = MODELS[name]
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # the usual initialisation makes scores that hardly differ
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder, **options)
    return folder


def hosted_scores(section: RewardModelJudge) -> Judged:
    import ray

    spec = make_spec(section, field="judge", base_dir=Path.cwd())
    variables = {"OMP_NUM_THREADS": "1"}
    host = ray.remote(JudgeHost).options(num_cpus=1, runtime_env={"env_vars": variables}).remote(spec)
    try:
        ray.get(host.try_it.remote(False), timeout=300)
        return ray.get(host.judge_shard.remote(shard_of("p"), answers("p", *TEXTS)), timeout=300)
    finally:
        ray.kill(host)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path, ray_local: None) -> None:
    """Would catch probabilities in the place of logits, a score read off a padding token, a lost BOS, and a label for
    another."""
    path, output = save(name, tmp_path / name), MODELS[name][2]
    question = Question(prompt_id="p", prompt="prompt p", completions=TEXTS, metadata={})
    [expected] = asyncio.run(RewardModel(str(path), output=output).judge([question]))
    fields = {"type": "reward_model", "path": str(path), "output": output, "engine": {}, "batch_tokens": 200}
    judged = hosted_scores(RewardModelJudge.model_validate(fields))
    found = [v.score for v in judged.verdicts]
    assert found == pytest.approx([v.score for v in expected], abs=1e-3)
    assert len({round(float(score), 2) for score in found if score is not None}) >= (4 if name == "bert" else 3)
    assert judged.counters["num_truncated_judge_inputs"] == 1


def test_what_the_engine_is_asked_for_and_what_is_checked_before(tmp_path: Path) -> None:
    path, requests = save("llama", tmp_path / "llama"), []

    def refuse(request: ScorerRequest) -> Any:
        requests.append(request)
        raise NeedsEngine("no engine here")

    engine = ScoringEngineSection(gpu_memory_utilization=0.2, kv_cache_gib=3)
    options: dict[str, Any] = {"engine": engine, "hosting": Hosting(scorer=refuse)}
    with pytest.raises(NeedsEngine):
        RewardModel(str(path), output=1, max_tokens=100, batch_tokens=900, dtype="bfloat16", **options)
    with pytest.raises(Exception, match="has 3 labels"):
        RewardModel(str(path), **options)
    assert requests == [
        ScorerRequest(
            path=str(path),
            dtype="bfloat16",
            max_tokens=100,
            batch_tokens=900,
            gpu_memory_utilization=0.2,
            kv_cache_gib=3,
            trust_remote_code=False,
            label=f"judge.path {path}",
        )
    ]
    with pytest.raises(NeedsEngine, match=r"^judge\.path .* needs a vLLM engine, which only a run starts"):
        RewardModel(str(path), output=1, engine=engine)
