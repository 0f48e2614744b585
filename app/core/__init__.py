"""Knows nothing of the product: errors, money, runtime, settings, registry, metrics, logs."""
