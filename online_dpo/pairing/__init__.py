"""What a judge said about a prompt's completions -> pairs, or desirable and undesirable answers.

May import `config`. Pure functions of verdicts: no torch, no files.
"""
