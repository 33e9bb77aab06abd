"""Folders of models and adapters: finding, inspecting and merging them. Nothing here trains or samples.

May import `config` and `embedded`.
"""
