"""Fitting heads on outcomes, offline: never imported by the gateway's process."""
