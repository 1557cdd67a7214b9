"""What a recipe will take, before anything runs. No torch, no network, no file writes."""
