"""The model files that hubtool ships with what it publishes."""
