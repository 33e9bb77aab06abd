"""Several runs on one page: curves on common axes, paired wins, what differs in their configs, answers side by side."""
