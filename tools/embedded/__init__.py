"""Builds the models that ship in `online_dpo/embedded`; `build` is the command. Nothing here ships."""
