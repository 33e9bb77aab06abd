"""People as a judge: what they are asked about, and how their votes become verdicts.

The run's process asks them itself, by the store in `RUN_DIR/annotation/`; `online-dpo annotate` shows the questions.
"""
