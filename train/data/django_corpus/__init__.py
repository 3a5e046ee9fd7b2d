"""The demo's corpus: Django's documentation and its translated messages."""
