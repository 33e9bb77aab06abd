"""What a run needs before it starts: inputs, what fits the machine and the models, the specs of the actors."""
