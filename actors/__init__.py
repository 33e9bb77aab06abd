"""The Ray actors of a run, and all that touches Ray or vLLM: cluster session, generators, judge hosts, learner host.

May import every room of the library but `commands` and `reports`, and `judges`. Nothing else imports ray or vllm.
"""
