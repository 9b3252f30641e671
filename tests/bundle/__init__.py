# SPDX-License-Identifier: Apache-2.0
"""The bundle: that it needs nothing of its host, installs and goes away, and is the same each time."""
