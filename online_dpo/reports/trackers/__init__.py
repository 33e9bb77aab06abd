"""Trackers: where figures, sample answers and the config of a run are sent as it goes on, such as TensorBoard.

Each works on a thread of its own, and none of them can stop or slow a run.
"""
