"""Training data: rows, loading and checking them, and the demo's corpus."""
