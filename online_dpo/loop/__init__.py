"""The loop over rounds: `rounds.Rounds.play` shows it, each verb of it has a module, `stages` says what it needs.

May import every room of the library but `reports` and `commands`. Knows neither Ray nor vLLM: the stages are handed in.
"""
