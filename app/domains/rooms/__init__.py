"""Rooms and sessions: the field on which people and goods meet. A good first domain to read.

A *room* is the lasting place of a host; a *session* is one show in it. The host's team prepares a session (offers on its shelf, a
run-of-show), goes live, pins what is being explained, changes prices within the delegated limits, and ends. Viewers see all of it as a
*snapshot* plus the events that follow.

    rules.py      the life cycle as a table, the checklists, who may like how fast: pure, read it first
    tables.py     rooms, sessions, cues
    store.py      their SQL, and the room's hash in the fan-out engine
    service.py    the use cases: one function each, and the worker's pulse
    endpoints.py  the RPC methods, the REST routes, and DOMAIN: what this package contributes to the product
"""
