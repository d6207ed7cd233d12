"""Models measured and selections compared."""
