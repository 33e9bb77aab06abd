"""The web pages on which people compare answers, and on which an administrator looks after them."""
