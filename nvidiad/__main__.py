# SPDX-License-Identifier: Apache-2.0
"""`python -m nvidiad` is the command line."""

import sys

from nvidiad.cli import main

sys.exit(main())
