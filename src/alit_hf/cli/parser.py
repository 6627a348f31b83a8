"""How the command line reads its arguments."""

import argparse
from typing import NoReturn

from .errors import UsageError


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong use in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")
