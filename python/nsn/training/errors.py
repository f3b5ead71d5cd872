"""What the user gave and cannot be used."""


class InputError(ValueError):
    """A file, recipe or option is wrong; says the rule, what was found and the remedy."""
