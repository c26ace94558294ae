"""Types and pure functions that every room shares; imports nothing of the house."""
