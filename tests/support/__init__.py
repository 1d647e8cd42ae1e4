"""What the tests share; imported as `support`, since tests/ is on the path (pyproject.toml)."""
