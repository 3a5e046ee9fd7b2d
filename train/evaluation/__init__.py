"""Evaluation with mteb, on texts in memory and on mteb's own tasks. mteb is imported on first use."""
