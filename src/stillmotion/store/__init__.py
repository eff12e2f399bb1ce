"""The durable state: one SQLite file or one PostgreSQL database, the same statements on both.

`open.py` opens it, `queue.py` moves requests through their states, the other modules hold one table each.
Every statement is a plain function of a connection; `Store.write` and `Store.read` run them.
"""
