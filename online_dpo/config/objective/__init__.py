"""The `objective` section: `pairwise` for the losses over pairs, `beta` for the strength of the pull to the reference.

`section` has KTO, the sum of several losses, and `ObjectiveSection`, the union of all types.
"""
