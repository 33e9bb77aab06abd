"""Judges made of other judges: ensembles, caches, scores of steps, penalties and other scales."""
