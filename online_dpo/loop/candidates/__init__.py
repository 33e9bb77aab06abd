"""Answers that further writers give beside the policy's samples: asking for them, and committing what comes.

Nothing is imported here: name the module that has what you want.
"""
