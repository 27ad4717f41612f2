"""How the losses or the gradients of T tasks become one update; imports `errors` alone, and is used
by `training`."""
