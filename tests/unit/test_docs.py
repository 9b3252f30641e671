# SPDX-License-Identifier: Apache-2.0
"""The documentation: whole where it lists things, links that lead somewhere, manual pages that build."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nvidiad import cli
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Phase
from nvidiad.thought import config, values
from nvidiad.thought.values import near

CHECKOUT = Path(__file__).parents[2]
