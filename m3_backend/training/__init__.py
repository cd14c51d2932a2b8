"""Procedural worlds, the Matryoshka training loop and the m3-tiny recipe."""
