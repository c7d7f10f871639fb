"""tap-pepper: a merchant's loyalty programme in Pepper, as Singer streams."""
