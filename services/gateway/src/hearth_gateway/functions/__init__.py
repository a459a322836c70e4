"""Functions: what people upload, checked, stored and versioned."""
