"""The recipe, its artifacts and their store. Imports nothing of ours, no torch, no rich."""
