"""The config of `online-dpo reward-model`."""
