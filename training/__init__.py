"""Train the pocket weights from nothing: a drawn world, its captions, and one script for each part.

Not part of the wheel. `docs/pocket.md` tells how the parts hang together.
"""
