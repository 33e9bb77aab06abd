"""What is shown of a run while it goes on: a display on a terminal, lines anywhere else, or JSON for programs."""
