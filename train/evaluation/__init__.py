"""Evaluation with mteb: of texts in memory and of mteb's own tasks. mteb is imported on first use."""
