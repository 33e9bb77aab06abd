"""The update: objectives, log-probs, batches, gradients, adapters and checkpoints, behind the class `learner.Learner`.

May import `config`, `models` and `pairing`. Knows neither Ray nor the loop, so it can be tested as it is. A learner of
several ranks would change `gradients` alone: there the global batch is split and gradients and figures are summed.
"""
