"""Draws whose winners anyone can recompute: rules fixed and hashed first, entrants frozen under one root, a seed committed before."""
