"""What builds the embedded models: cutting the corpus, training rows, the 5-gram baseline, the gold fit."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from online_dpo.embedded.gold import GoldJudge
from tools.embedded import build, measure
from tools.embedded.corpus import Review, half_of, random_snippet, sentence_starts, word_starts
from tools.embedded.gold_fit import export_gold, fit_gold
from tools.embedded.ngram import KneserNey
from tools.embedded.reward_fit import reward_from_policy, snippet_batches
from tools.embedded.training import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    ResidualDropout,
    heldout_nats,
    language_batches,
    new_policy,
    next_token_loss,
    train_tokenizer,
)


def review(number: int, text: str, *, positive: bool = True, split: str = "train") -> Review:
    return Review(review_id=f"cv{number:03}_{number}", text=text, positive=positive, split=split)


# --- cutting the corpus


def test_each_train_review_goes_to_exactly_one_judge() -> None:
    reviews = [review(i, "text") for i in range(400)] + [review(1000, "text", split="heldout")]
    reward, gold = build.split_for_judges(reviews)
    reward_ids, gold_ids = {r.review_id for r in reward}, {r.review_id for r in gold}
    assert not reward_ids & gold_ids
    assert reward_ids | gold_ids == {r.review_id for r in reviews if r.split == "train"}
    assert 150 < len(reward) < 250
    # The halves must not move between builds: the committed judges were fitted to them.
    assert [half_of(name) for name in ("cv000_0", "cv001_1", "cv002_2", "cv003_3")] == ["gold", "reward"] * 2


def test_sentences_start_where_sentences_start() -> None:
    text = 'one . two is here. " three ! " four? five'
    assert [text[at:].split()[0] for at in sentence_starts(text)] == ["one", "two", "three", "four?", "five"]


def test_a_snippet_is_whole_adjacent_words() -> None:
    text = " ".join(f"w{i}" for i in range(40))
    assert word_starts("ab  cd e") == [0, 4, 7]
    rng = random.Random(0)
    for _ in range(200):
        words = random_snippet(review(0, text), rng, words=(3, 9)).split()
        first = int(words[0][1:])
        assert words == [f"w{first + i}" for i in range(len(words))]
        assert 3 <= len(words) <= 9
    assert random_snippet(review(0, "only two"), rng, words=(5, 5)) == "only two"


# --- training rows


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Any:
    return train_tokenizer(["the film begins with a man. he walks. the end of it is near."] * 3)


def test_rows_begin_at_sentences_and_end_documents(tiny_tokenizer: Any) -> None:
    text = "the film begins. he walks. the end."
    batch = next(language_batches([review(0, text)], tiny_tokenizer, tokens=512, lengths=(64,), seed=0))
    assert batch.shape == (8, 64)
    sentences = {text[at:] for at in sentence_starts(text)}
    for row in batch.tolist():
        assert row[0] == BOS_ID
        first_document = row[1 : row.index(EOS_ID)]
        assert tiny_tokenizer.decode(first_document) in sentences
        assert all(row[i + 1] == BOS_ID for i, token in enumerate(row[:-1]) if token == EOS_ID)


def test_loss_never_asks_for_a_bos(tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    policy = new_policy(tiny_tokenizer, layers=1)
    ids = torch.tensor([[BOS_ID, 5, 6, EOS_ID, BOS_ID, 7]])
    logits = policy(input_ids=ids).logits[0, :-1].log_softmax(-1)
    targets = ids[0, 1:]
    by_hand = -torch.stack([logits[i, t] for i, t in enumerate(targets.tolist()) if t != BOS_ID]).mean()
    torch.testing.assert_close(next_token_loss(policy, ids), by_hand)


def test_heldout_nats_score_every_token_once(tiny_tokenizer: Any) -> None:
    """With zero logits each token costs log V, whatever the windows."""
    policy = new_policy(tiny_tokenizer, layers=1).eval()
    with torch.no_grad():
        policy.model.embed_tokens.weight.zero_()
    text = "he walks. the film begins with a man. the end. " * 5
    num_tokens = len(tiny_tokenizer.encode(text, add_special_tokens=False).ids) + 1
    assert num_tokens > 64
    for window in (16, 32, 1024):
        nats = heldout_nats(policy, [review(0, text)], tiny_tokenizer, window=window, autocast=False)
        assert nats == pytest.approx(num_tokens * math.log(tiny_tokenizer.get_vocab_size()), rel=1e-5)


def test_heldout_windows_agree_with_one_forward_pass(tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    policy = new_policy(tiny_tokenizer, layers=1).eval()
    text = "he walks. the film begins with a man."
    ids = torch.tensor([[*tiny_tokenizer.encode(text).ids, EOS_ID]])
    logps = policy(input_ids=ids).logits[0, :-1].log_softmax(-1)
    expected = -logps[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().item()
    assert heldout_nats(policy, [review(0, text)], tiny_tokenizer, autocast=False) == pytest.approx(expected, rel=1e-5)


def test_dropout_acts_only_in_training_and_leaves_no_hook(tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    policy = new_policy(tiny_tokenizer, layers=1).eval()
    ids = torch.tensor([[BOS_ID, 5, 6, 7]])
    plain = policy(input_ids=ids).logits
    dropout = ResidualDropout(policy)
    dropout.rate = 0.5
    torch.testing.assert_close(policy(input_ids=ids).logits, plain)
    assert not torch.allclose(policy.train()(input_ids=ids).logits, plain)
    dropout.remove()
    torch.testing.assert_close(policy(input_ids=ids).logits, plain)


def test_reward_starts_from_the_policys_first_layers(tiny_tokenizer: Any) -> None:
    policy = new_policy(tiny_tokenizer, layers=3)
    reward = reward_from_policy(policy, layers=2)
    ours, theirs = reward.state_dict(), policy.state_dict()
    shared = [name for name in ours if name in theirs]
    assert {name.split(".")[2] for name in shared if ".layers." in name} == {"0", "1"}
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    assert reward.config.pad_token_id == PAD_ID


def test_reward_batches_are_balanced(tiny_tokenizer: Any) -> None:
    reviews = [review(i, "the film begins with a man. " * 40, positive=i == 0) for i in range(5)]
    ids, mask, labels = next(snippet_batches(reviews, tiny_tokenizer, rows=8, seed=0))
    assert labels.tolist() == [1, 0] * 4
    assert (ids[:, 0] == BOS_ID).all() and mask[:, 0].all()
    assert ((ids == PAD_ID) == (mask == 0)).all()


# --- the 5-gram baseline


def test_kneser_ney_against_a_hand_calculation() -> None:
    """Two documents `a b` and `a c` over 8 ids, bigrams.

    Bigrams: (bos a) 2, (a b) 1, (a c) 1; n1 = 2, n2 = 1, so d = 2 / 4. Continuations: a, b, c have one preceding
    token each; no count is 2, so d = 1/2. Unigrams: (1 - 1/2) / 3 + 1/2 * 3 / 3 * 1/7 for the three that occur.
    """
    a, b, c, unseen = 3, 4, 5, 6
    model = KneserNey([[a, b], [a, c]], order=2, vocabulary=8, bos=1)
    seen_unigram = 0.5 / 3 + 0.5 / 7
    never_unigram = 0.5 / 7
    a_first = 1.5 / 2 + 0.5 * 1 / 2 * seen_unigram
    b_after_a = 0.5 / 2 + 0.5 * 2 / 2 * seen_unigram
    unseen_after_b = never_unigram
    expected = np.log([a_first, b_after_a, unseen_after_b])
    np.testing.assert_allclose(model.log_probs([a, b, unseen]), expected, rtol=1e-12)
    assert c != unseen


def test_kneser_ney_sums_to_one_in_any_context() -> None:
    rng = random.Random(0)
    documents = [[rng.randrange(2, 9) for _ in range(30)] for _ in range(5)]
    model = KneserNey(documents, order=4, vocabulary=9, bos=1)
    for context in ([], [3], [4, 4, 4], documents[0][:7]):
        # Every id but `bos` is a possible next token.
        total = sum(math.exp(model.log_probs([*context, token])[-1]) for token in range(9) if token != 1)
        assert total == pytest.approx(1.0)


def test_kneser_ney_refuses_ngrams_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        KneserNey([[1]], order=6, vocabulary=4096, bos=1)


# --- the gold judge and the figures


def test_gold_judge_equals_scikit_learn(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["good", "bad", "it's", "don't", "film", "a", "plot", "x", "naïve", "très"]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 30))) for _ in range(60)]
    labels = [text.count("good") > text.count("bad") for text in texts]
    pipeline = fit_gold(texts, labels, max_features=40, min_df=2)
    export_gold(pipeline, tmp_path)
    judge = GoldJudge(tmp_path)
    trials = [*texts, "GOOD film , it's ... bad", "naïve - très; don't 'x'", "good good good", "nothing known", ""]
    expected = pipeline.decision_function(trials)
    np.testing.assert_allclose(judge.score_batch(["bad"] * len(trials), trials), expected, atol=1e-5)
    assert expected.std() > 0.1
    assert judge.score("bad bad bad", "good film") == pytest.approx(judge.score("", "good film"))
    with pytest.raises(ValueError, match="zip"):
        judge.score_batch(["one"], ["one", "two"])


def test_accuracy_and_bits_per_byte() -> None:
    assert measure.accuracy([0.5, -0.5, 2.0], [True, True, False]) == {"right": 1, "of": 3}
    # 8 bits for each of the 4 bytes of "aé.".
    assert measure.bits_per_byte(32 * math.log(2), [review(0, "aé.")]) == pytest.approx(8.0)
