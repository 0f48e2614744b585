"""The domain rooms."""
