"""Attacking a verifier, and calibrating it, before it may gate training."""
