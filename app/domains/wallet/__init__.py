"""The domain wallet."""
