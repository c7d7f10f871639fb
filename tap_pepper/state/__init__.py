"""What the state keeps between runs, apart from bookmarks."""
