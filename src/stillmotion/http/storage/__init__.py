"""Uploads in one piece and in parts, and the way files go out again."""
