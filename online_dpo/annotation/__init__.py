"""People who compare two answers: what they are asked, their votes, and what is made of these.

One SQLite file holds all of it (`store.py`). The judge's process and the web server's open it at the same time, on the
same machine.
"""
