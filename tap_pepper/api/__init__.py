"""HTTP: pages of Pepper's list endpoints, with retries, rate limits and prefetching."""
