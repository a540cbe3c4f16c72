"""Running units of work with retries, in this process or on Ray."""
