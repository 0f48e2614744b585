"""Products with their origin, and offers: a product on a session's shelf with price, stock, limits and window."""
