"""Stages: one file a kind. Each makes one artifact; torch is imported inside functions only."""
