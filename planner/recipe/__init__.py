"""Config, profiles, driver, step reuse, tracking and console."""
