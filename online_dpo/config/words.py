"""The words of other trainers (TRL, OpenRLHF, transformers) for what a config of ours says, for hints in errors."""

from __future__ import annotations

FLAG = "override {given!r} is not of the form section.field=value; write it without leading signs: {right}"

FIELDS: dict[str, str] = {
    "learning_rate": "learner.lr", "actor_learning_rate": "learner.lr", "lr": "learner.lr",
    "lr_scheduler_type": "learner.schedule", "lr_scheduler": "learner.schedule", "scheduler": "learner.schedule",
    "warmup_steps": "learner.warmup_steps", "num_warmup_steps": "learner.warmup_steps",
    "warmup_ratio": "learner.warmup_steps", "lr_warmup_ratio": "learner.warmup_steps",
    "weight_decay": "learner.weight_decay", "l2": "learner.weight_decay", "max_norm": "learner.max_grad_norm",
    "max_grad_norm": "learner.max_grad_norm", "gradient_clipping": "learner.max_grad_norm",
    "num_train_epochs": "learner.epochs", "num_epochs": "learner.epochs", "max_epochs": "learner.epochs",
    "epochs": "learner.epochs", "batch_size": "learner.batch_pairs", "train_batch_size": "learner.batch_pairs",
    "per_device_train_batch_size": "learner.batch_pairs", "micro_train_batch_size": "learner.micro_batch_tokens",
    "gradient_accumulation_steps": "learner.batch_pairs", "micro_batch_size": "learner.micro_batch_tokens",
    "gradient_checkpointing": "learner.activation_checkpointing", "torch_compile": "learner.compile",
    "save_steps": "learner.checkpoint_steps", "lora_r": "learner.lora.r", "lora_rank": "learner.lora.r",
    "rank": "learner.lora.r", "lora_alpha": "learner.lora.alpha", "lora_dropout": "learner.lora.dropout",
    "target_modules": "learner.lora.targets", "lora_target_modules": "learner.lora.targets",
    "peft": "learner.lora", "peft_config": "learner.lora", "lora": "learner.lora", "lora_config": "learner.lora",
    "max_new_tokens": "sampling.max_tokens", "max_completion_length": "sampling.max_tokens",
    "max_tokens": "sampling.max_tokens", "generate_max_len": "sampling.max_tokens",
    "response_length": "sampling.max_tokens", "max_length": "sampling.max_tokens", "max_len": "sampling.max_tokens",
    "max_prompt_length": "prompts.max_tokens", "prompt_max_len": "prompts.max_tokens",
    "num_generations": "sampling.num_samples", "n_samples_per_prompt": "sampling.num_samples",
    "num_return_sequences": "sampling.num_samples", "best_of_n": "sampling.num_samples", "n": "sampling.num_samples",
    "temperature": "sampling.temperature", "top_p": "sampling.top_p", "stop_token": "sampling.stop",
    "missing_eos_penalty": "sampling.truncated_penalty", "stop_sequences": "sampling.stop",
    "beta": "objective.beta", "kl_coef": "objective.beta", "init_kl_coef": "objective.beta",
    "loss_type": "objective.type", "loss": "objective.type", "label_smoothing": "objective.label_smoothing",
    "reward_model": "judge.path", "reward_model_path": "judge.path", "reward_pretrain": "judge.path",
    "reward_funcs": "judge.target", "remote_rm_url": "judge.base_url", "reward": "judge.type",
    "ref_model": "reference.path", "reference_model": "reference.path", "ref_pretrain": "reference.path",
    "model_name_or_path": "model.path", "model_name": "model.path", "pretrain": "model.path",
    "base_model": "model.path",
    "model_path": "model.path", "torch_dtype": "model.dtype", "dtype": "model.dtype", "bf16": "model.dtype",
    "fp16": "model.dtype", "adapter": "model.adapter", "adapter_path": "model.adapter",
    "dataset": "prompts.source", "dataset_name": "prompts.source", "prompt_data": "prompts.source",
    "train_dataset": "prompts.source", "data": "prompts.source", "dataset_config": "prompts.subset",
    "dataset_config_name": "prompts.subset", "dataset_split": "prompts.split", "prompt_split": "prompts.split",
    "input_key": "prompts.field", "prompt_key": "prompts.field", "rollout_batch_size": "prompts.per_round",
    "dataset_mixer": "prompts.sources", "mixture": "prompts.sources", "prompt_data_probs": "prompts.sources",
    "preferences": "pairs", "eval_dataset": "evaluation.sets", "eval_data": "evaluation.sets",
    "eval_steps": "evaluation.every", "seed": "run.seed", "output_dir": "run.dir", "save_path": "run.dir",
    "run_name": "run.name", "name": "run.name", "max_steps": "run.rounds", "num_iterations": "run.rounds",
    "num_rounds": "run.rounds", "num_episodes": "run.rounds", "iterations": "run.rounds", "rounds": "run.rounds",
    "gpu_memory_utilization": "generator.gpu_memory_utilization",
    "vllm_gpu_memory_utilization": "generator.gpu_memory_utilization",
    "tensor_parallel_size": "generator.tensor_parallel", "vllm_tensor_parallel_size": "generator.tensor_parallel",
    "vllm_num_engines": "generator.replicas", "num_engines": "generator.replicas",
    "enforce_eager": "generator.enforce_eager", "ray_address": "cluster.address", "num_cpus": "cluster.num_cpus",
    "max_restarts": "cluster.max_restarts", "num_processes": "learner.num_workers",
    "nproc_per_node": "learner.num_workers", "world_size": "learner.num_workers",
    "actor_num_gpus_per_node": "learner.num_workers",
    "report_to": "logging.trackers", "wandb": "logging.trackers", "use_wandb": "logging.trackers",
    "wandb_project": "logging.tracker_options", "mlflow": "logging.trackers", "use_tensorboard": "logging.trackers",
    "tensorboard": "logging.trackers",
}  # fmt: skip
"""A key -> our field, if that is the last key of what somebody wrote."""

REMARKS: dict[str, str] = {
    "learner.warmup_steps": "a number of steps",
    "learner.batch_pairs": "the pairs of an optimizer step; forward passes are cut to learner.micro_batch_tokens",
    "judge.path": "with judge.type: reward_model",
    "judge.target": "with judge.type: python",
    "judge.base_url": "with judge.type: llm",
    "prompts.sources": "a list of {source, weight}",
    "reference.path": "with reference.type: path",
    "logging.trackers": "a list of names; every figure is in metrics.jsonl of the run directory too",
    "logging.tracker_options": "such as {wandb: {project: NAME}}",
}

VALUES: dict[str, dict[str, str]] = {
    "type": {
        "dpo": "sigmoid", "kto_pair": "kto", "sppo": "sppo_hard", "nca": "nca_pair", "exo": "exo_pair",
        "bco": "bco_pair", "apo": "apo_zero", "aot_pair": "aot", "aot_unpaired": "aot", "cpo": "simpo",
        "slic": "hinge", "rso": "hinge", "rm": "reward_model", "reward": "reward_model", "function": "python",
        "openai": "llm", "api": "llm", "pairrm": "llm", "math": "verifier", "none": "fixed", "initial": "fixed",
    },
    "dtype": {
        "bf16": "bfloat16", "torch.bfloat16": "bfloat16", "fp32": "float32", "float": "float32",
        "torch.float32": "float32", "fp16": "bfloat16", "float16": "bfloat16", "half": "bfloat16", "auto": "bfloat16",
    },
    "autocast": {"bf16": "bfloat16", "fp16": "bfloat16", "float16": "bfloat16", "none": "off", "no": "off"},
    "schedule": {"cosine_with_restarts": "cosine", "constant_with_warmup": "constant", "none": "constant"},
}  # fmt: skip
"""The last key of a field -> what others write there -> what we write."""


def our_field(path: str) -> str | None:
    """What a key that is not known is called here, with a remark; None where nobody knows."""
    field = FIELDS.get(path.split(".")[-1].replace("-", "_").lower())
    if field is None or field == path:
        return None
    remark = REMARKS.get(field)
    return field if remark is None else f"{field} ({remark})"


def our_value(path: str, value: object, allowed: str) -> str | None:
    """What a value is called here that others write in this field; None where it is not known, or not allowed."""
    ours = VALUES.get(path.split(".")[-1], {}).get(value.lower()) if isinstance(value, str) else None
    return ours if ours is not None and ours in allowed else None
