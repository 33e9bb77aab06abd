"""What people and programs are shown of a run: trackers, the progress display, tables.

May import `loop` and the rooms below it. Nothing here decides anything about a run.
"""
