"""Alembic's steps, run by `store/migrate.py`."""
