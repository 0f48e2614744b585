"""The domain orders."""
