"""The domain chat."""
