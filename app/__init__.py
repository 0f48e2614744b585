"""Jishi: a self-hosted real-time interaction backend for live commerce.

The map, as ten questions
-------------------------
1.  What does a client see on the wire?            protocol/ (commands.py, order_commands.py, events.py, views.py, codes.py, session.py)
2.  Who may do what?                               domains/accounts/rules.py; each endpoint names its right
3.  Where is the rule that decides X?              domains/<noun>/rules.py: pure, no engine, no clock
4.  Where is the SQL, the key or the Lua of X?     domains/<noun>/store.py, tables.py, *.lua
5.  Which steps does a use case take?              domains/<noun>/service.py
6.  Which RPC methods and REST routes exist?       domains/<noun>/endpoints.py; composition.py lists the domains
7.  How does a change reach a viewer?              storage/work.py (outbox) -> storage/streams.py -> gateway/
8.  What happens because time passed?              worker.py: a list of named loops
9.  How is it started, watched, operated?          cli.py, supervisor.py, core/metrics.py
10. How do I know that it is true?                 tests/, and tests/support/auditor for the invariants

Processes: `jishi serve` (web: gateway, REST, console; no truth in memory), `jishi worker` (intake, expiry, timers;
safe to kill at any time), `jishi up` (both, with embedded Valkey and PostgreSQL).

Words are used as in docs/glossary.md; CONTRIBUTING.md says where a new line belongs.
"""

__version__ = "0.1.0"
