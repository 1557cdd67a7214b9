"""Commands. `main.py` is standard library only; one file a command: parse, call, print."""
