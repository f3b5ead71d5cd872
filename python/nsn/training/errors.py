"""Why a command ends before its work is done; each message is for the user."""


class InputError(ValueError):
    """A file, recipe or option is wrong; says the rule, what was found and the remedy."""


class DivergedError(Exception):
    """The loss of a training is no finite number any more; says where, and the remedy."""
