"""From a gate's outcome to tags, aliases and policy versions."""
