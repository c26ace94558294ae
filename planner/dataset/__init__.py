"""From events in PostgreSQL to an immutable dataset version."""
