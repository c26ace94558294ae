"""One thin script per entry point of MLproject: parse, call a room, report."""
