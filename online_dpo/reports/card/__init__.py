"""The model card of an exported policy, written from what its run recorded, and from nothing else."""
