"""The page about a run that people open in a browser: collecting, charts, templates.

Everything is read from the run directory. Nothing on a page is loaded from anywhere: it is one file.
"""
