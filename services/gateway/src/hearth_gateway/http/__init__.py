"""HTTP: the server, the routes, the shapes."""
