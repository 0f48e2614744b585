"""What the REST routes of all domains share: who is calling, problem details, pages, idempotency. Knows no domain.

The authenticated `Caller` is put into `request.state.caller` by the composition root's middleware (accounts resolves it), so this package
needs to know nothing of tokens.
"""
