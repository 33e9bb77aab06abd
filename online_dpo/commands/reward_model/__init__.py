"""`online-dpo reward-model`: from preferences to a sequence-classification model that judges as it is."""
