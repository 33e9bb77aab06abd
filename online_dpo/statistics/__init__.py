"""Figures about samples and about judges, as a round commits them. How they are shown is in `reports`.

May import `pairing` and the rooms below it. Pure functions: no torch, no files.
"""
