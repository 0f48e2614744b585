"""The domain analytics."""
