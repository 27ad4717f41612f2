"""Many runs, and what they came to; knows `training`, and is used by the commands alone."""
