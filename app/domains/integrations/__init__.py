"""The domain integrations."""
