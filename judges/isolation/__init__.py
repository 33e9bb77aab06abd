"""Code that may hang, crash or take all memory, in a process of its own that can be killed and replaced."""
