"""Stand-ins for packages that are not installed."""

import inspect
from types import SimpleNamespace


def declared(signature):
    """Gives a function of one namespace the signature of what it stands for: an argument of another name is an error.

    Long signatures stay readable as a string, which eval takes: the strings are those of these tests.
    """
    bind = eval(f"lambda {signature}: locals()")

    def decorate(function):
        def fake(*args, **options):
            return function(SimpleNamespace(**bind(*args, **options)))

        fake.__signature__ = inspect.signature(bind)
        return fake

    return decorate
