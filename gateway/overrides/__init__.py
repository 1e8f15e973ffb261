"""A hand on the switch: what an operator changes at once, for a while, in every gateway process."""
