"""Files and hub data sets -> rows -> prompts and preferences: reading, tokenising, drawing without replacement.

May import `config` and `models`.
"""
