"""The domain lottery."""
