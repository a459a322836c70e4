"""What the gateway keeps an eye on, on the bus."""
