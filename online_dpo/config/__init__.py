"""What a run is made of: one module for each part of the config, and loading, checking and explaining it.

`run.RunConfig` holds all sections. May import `types` and `errors`; never torch, Ray or vLLM, so that `online-dpo
validate` answers at once.
"""
