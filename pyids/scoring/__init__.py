"""From probe rows to scores, and from scores to weights."""
