"""Runs: their folders, checkpoints, locks, and how they are found again."""
