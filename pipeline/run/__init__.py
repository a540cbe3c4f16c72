"""How units of work are run: in this process or on Ray, with retries."""
