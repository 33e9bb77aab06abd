"""What a finished run hands on: a policy for other trainers, its judge as their reward, a model card, and the hub."""
