"""The model: what a replica runs. Imports nothing heavy; see docs/architecture.md for the rooms."""
