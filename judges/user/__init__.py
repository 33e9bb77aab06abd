"""Judges that a user writes: finding the code, and making a judge of a function or a class."""
