"""Judges that compare an answer with a known one: texts, numbers and mathematical expressions."""
