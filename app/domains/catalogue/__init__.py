"""The domain catalogue."""
