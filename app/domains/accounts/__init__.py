"""The domain accounts."""
