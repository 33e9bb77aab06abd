"""Bradley-Terry training by TRL's `RewardTrainer`, on token ids that are ours. Imports torch, transformers and TRL.

TRL gets no text, so none of its own preparation applies: it would append an end token to plain text, which no judge
does, and drop what is longer than its limit without a count.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.utils import disable_dropout_in_model

from online_dpo.commands.preparing.model_checks import check_named_layers
from online_dpo.commands.reward_model.preferences import Encoded
from online_dpo.config.reward_model.section import RewardModelConfig
from online_dpo.errors import ConfigError, TrainingError
from online_dpo.learner.lora_targets import all_linear
from online_dpo.models.loading import check_finite, load_weights, quiet, read_config

NUM_LINES = 20
"""About so many times the training tells where it is."""


def train(
    config: RewardModelConfig,
    base: Path,
    tokenizer: Any,
    pairs: Sequence[Encoded],
    out: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Train a model and write it with its tokenizer, as plain transformers loads them.

    Args:
        config: of the training.
        base: the folder of the model that it begins with.
        tokenizer: of that model; its pad token becomes the model's, which then reads the score before it.
        pairs: to train on.
        out: an empty folder.
        tell: prints a line.

    Returns:
        `num_steps`, `num_trained_parameters`, and `progress`: step, loss and accuracy of the batches since the last.

    Raises:
        UserError: the base cannot be loaded, or LoRA does not fit it.
        TrainingError: a loss is no finite number.
    """
    if torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible, and a reward model is trained on one; set "
            f"CUDA_VISIBLE_DEVICES=0"
        )
    torch.manual_seed(config.seed)  # of the head
    base_model = _load(config, base)
    check_finite(base_model.state_dict().items(), label=f"model.path is {config.model.path}")
    disable_dropout_in_model(base_model)  # before LoRA is put on it, which has a dropout of its own
    progress: list[dict[str, float]] = []
    rows = {"chosen_ids": [p.chosen_ids for p in pairs], "rejected_ids": [p.rejected_ids for p in pairs]}
    with TemporaryDirectory() as scratch, warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        trainer = RewardTrainer(
            model=base_model,
            args=_arguments(config, len(pairs), scratch),
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            peft_config=_lora(config, base_model),
            callbacks=[_Progress(progress, tell)],
        )
        trainer.remove_callback(PrinterCallback)
        model: Any = trainer.model
        num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        trainer.train()
        model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if config.training.lora is not None:
            model = model.merge_and_unload()
        check_finite(model.state_dict().items(), label="the trained model")
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"num_steps": trainer.state.global_step, "num_trained_parameters": num_trained, "progress": progress}


def _load(config: RewardModelConfig, base: Path) -> Any:
    section = config.model
    label = f"model.path is {section.path}"
    shape = read_config(base, label=label, trust_remote_code=section.trust_remote_code)
    shape.num_labels = 1
    return load_weights(
        base,
        shape,
        label=label,
        head="sequence",
        new_head=True,
        dtype=getattr(torch, section.dtype),
        trust_remote_code=section.trust_remote_code,
    )


def _lora(config: RewardModelConfig, model: Any) -> LoraConfig | None:
    lora = config.training.lora
    if lora is None:
        return None
    targets = lora.targets
    if isinstance(targets, str):
        targets = all_linear(model)
    else:
        check_named_layers(model, targets, field="training.lora.targets")
    return LoraConfig(  # of this task type, PEFT trains the head as well
        task_type=TaskType.SEQ_CLS,
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=targets,
    )


def _arguments(config: RewardModelConfig, num_pairs: int, folder: str) -> RewardConfig:
    section = config.training
    micro = section.micro_batch_pairs or section.batch_pairs
    num_steps = math.ceil(num_pairs / section.batch_pairs) * section.epochs
    on_gpu = torch.cuda.is_available()
    autocast = section.autocast == "bfloat16" or (section.autocast == "auto" and on_gpu)
    schedule = "constant_with_warmup" if section.schedule == "constant" else section.schedule  # plain has no warm-up
    return RewardConfig(
        output_dir=folder,
        seed=config.seed,
        data_seed=config.seed,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=section.batch_pairs // micro,
        num_train_epochs=section.epochs,
        learning_rate=section.lr,
        lr_scheduler_type=schedule,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        center_rewards_coefficient=section.center_rewards,
        bf16=autocast,  # TRL's default is true
        use_cpu=not on_gpu,  # else bfloat16 is refused there
        fp16=False,
        gradient_checkpointing=section.activation_checkpointing,
        disable_dropout=False,
        max_length=None,
        logging_steps=math.ceil(num_steps / NUM_LINES),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would show the mean of earlier losses in place of a NaN
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class _Progress(TrainerCallback):
    """Keeps and tells each line of the trainer's log."""

    def __init__(self, progress: list[dict[str, float]], tell: Callable[[str], None]) -> None:
        self._progress, self._tell = progress, tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if "loss" not in logs:
            return  # the sum at the end, with times
        step, loss, accuracy = state.global_step, float(logs["loss"]), float(logs["accuracy"])
        if not math.isfinite(loss) or not math.isfinite(float(logs.get("grad_norm", 0.0))):
            raise TrainingError(
                f"step {step} of {state.max_steps}: loss or gradient is not finite; lower training.lr, which is "
                f"{args.learning_rate:g}, or raise training.warmup_steps"
            )
        self._progress.append({"step": step, "loss": loss, "accuracy": accuracy})
        self._tell(f"step {step} of {state.max_steps}: loss {loss:.4f}, accuracy {accuracy:.2f} of its batches")
