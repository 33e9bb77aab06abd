"""The `candidates` section: who writes answers besides the policy, a module for the kinds and one for their checks.

Nothing is imported here: name the module that has what you want.
"""
