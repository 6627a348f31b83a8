"""Every analysis can be loaded by its name, and says of itself what the command line needs."""

import argparse
import dataclasses
from unittest.mock import Mock

import pytest

from alit_hf.analysis.registry import ANALYSES, load_analysis


@pytest.mark.parametrize("name", ANALYSES)
def test_analyses(name):
    analysis = load_analysis(name)
    assert analysis.name == name
    assert analysis.default_limit > 0
    assert all(option == "data" or option.endswith("_data") for option in analysis.data_options)
    parser = Mock(spec=argparse.ArgumentParser)
    analysis.add_arguments(parser)
    flags = [call.kwargs.get("dest", call.args[0]) for call in parser.add_argument.call_args_list]
    options = [flag.removeprefix("--").replace("-", "_") for flag in flags]
    assert sorted(options) == sorted(field.name for field in dataclasses.fields(analysis))


def test_unknown_name():
    with pytest.raises(ValueError, match="`name` is 'entropy', it must be one of"):
        load_analysis("entropy")
