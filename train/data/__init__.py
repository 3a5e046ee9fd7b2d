"""Training data: the built-in corpus, and anybody's own."""
