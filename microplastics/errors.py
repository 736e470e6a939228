"""The exception type for what a person can cause and mend."""


class UserError(Exception):
    """A person can mend this: the message is one sentence naming the thing and the mend.

    Tools print it without a traceback and exit with code 2 (:func:`microplastics.cli.run`).
    Anything else that is raised is a bug and keeps its traceback.
    """


class WriteError(UserError):
    """A file cannot be written: what is true of one is most likely true of the next ones too."""
