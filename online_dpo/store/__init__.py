"""The run directory: files, commits, rounds and tables. The only room that knows how a write becomes durable.

May import `types` and `errors`.
"""
