"""Money inside Jishi: a double-entry ledger in SQL. Everyone else moves money through `service.py` only."""
