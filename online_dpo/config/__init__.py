"""What a run is made of: one module for each part of the config, loading with overrides, and the wording of errors.

May import `types` and `errors`. Never torch, Ray or vLLM: `online-dpo validate` answers at once.
"""
