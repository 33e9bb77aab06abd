"""What every command shares at the terminal: its parameters, the display of a run, completion."""
