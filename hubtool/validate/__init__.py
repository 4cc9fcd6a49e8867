"""Validation: the memory guard, and one module a rung of the ladder."""
