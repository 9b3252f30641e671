# SPDX-License-Identifier: Apache-2.0
"""What attackers say to the parsers."""
