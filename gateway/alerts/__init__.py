"""Alerts: what is looked for, told once, and delivered at least once."""
