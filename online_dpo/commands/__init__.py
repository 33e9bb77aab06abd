"""The commands of `online-dpo`, a module each; `run` wires config, data, stages, loop, store and reports together.

May import every room of the library, `judges`, and `actors` inside the functions that start engines.
"""
