"""Many runs, and what is told of runs; knows `training`, and nothing but `main` knows it."""
