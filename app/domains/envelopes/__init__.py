"""The domain envelopes."""
