"""Silence where a bar of our own is shown."""


def quiet_libraries() -> None:
    """Keep diffusers and transformers from bars and advice of their own; errors are still raised."""
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
