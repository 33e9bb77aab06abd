"""What `store.py` is made of: the tables of the SQLite file, and the functions that read and change them.

The functions take the connection of a transaction that the store has begun. Only `queue.py`, `leases.py` and
`voting.py` change `questions.counted` and `questions.leased`.
"""
