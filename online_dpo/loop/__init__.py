"""The loop over rounds: `rounds.Rounds.play` shows it, each verb of it has a module, `stages` says what it needs.

May import every room above `reports`. Knows neither Ray nor vLLM: the stages are handed in.
"""
