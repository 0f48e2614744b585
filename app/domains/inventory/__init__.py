"""The domain inventory."""
