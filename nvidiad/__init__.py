# SPDX-License-Identifier: Apache-2.0
"""nvidiad keeps the right NVIDIA driver on Linux hosts that update themselves."""

__version__ = "0.1.0"
