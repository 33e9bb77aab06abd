"""The answers on a page: reading a round's, choosing a sample of them, keeping it, and fitting all on one page."""
