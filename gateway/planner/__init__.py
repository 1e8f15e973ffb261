"""Capacity and cost on paper: what to rent for a model, a load and a promise."""
