"""Functions in containers: the engine, the profile, the links, the pool, and the backend that joins them."""
