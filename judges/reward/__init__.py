"""Judges that are sequence-classification models."""
