"""The one exception for mistakes of the person at the keyboard."""


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence.

    The message names the thing that is wrong and what was expected. `talora_jax.main` prints it
    without a traceback and exits with status 2.
    """
