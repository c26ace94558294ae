"""Offline replay: scores, gate and report."""
