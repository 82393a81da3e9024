"""Long trials of what must not break: `make chaos`; the short ones are tests."""
