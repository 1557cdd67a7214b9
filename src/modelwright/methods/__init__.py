"""Methods: one folder a family, one file a kind. The family's torch-free base is its `__init__.py`."""
