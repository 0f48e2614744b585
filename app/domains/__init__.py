"""One package per noun; at most four kinds of file: rules.py store.py service.py endpoints.py (+ *.lua, tables.py)."""
