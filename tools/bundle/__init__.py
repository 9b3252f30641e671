# SPDX-License-Identifier: Apache-2.0
"""The bundle: nvidiad with a Python and a C library of its own, for hosts that have neither."""
