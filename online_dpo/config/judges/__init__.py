"""The sections of judges: `hosted` for those that answer by themselves, `llm` for chat models.

`section` has the judges that ask other judges, and `JudgeSection`, the union of all kinds. A new kind of judge joins
that union.
"""
