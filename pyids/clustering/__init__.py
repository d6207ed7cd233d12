"""Exact k-means and the choice of K."""
