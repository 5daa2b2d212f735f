"""Complete training recipes: functions that return one configuration each, and commands that run it."""
