"""`python -m alit_hf.cli`, the same as `alit`."""

import sys

from . import main


sys.exit(main())
