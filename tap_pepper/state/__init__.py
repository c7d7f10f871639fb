"""What the STATE keeps between runs in addition to bookmarks."""
