"""How rows go through the model fast: packing, attention over packed rows, and the products of LoRA layers.

May import torch, `types` and `errors`.
"""
