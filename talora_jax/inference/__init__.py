"""What was trained, in use; knows `tasks` and `weights`, and not how either was trained."""
