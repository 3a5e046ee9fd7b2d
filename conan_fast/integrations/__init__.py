"""Adapters that let other libraries use the operators; each imports its library only when it is used."""
