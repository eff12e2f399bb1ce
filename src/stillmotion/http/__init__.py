"""The doors: fal's HTTP contract over the store and the media."""
