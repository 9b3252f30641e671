# SPDX-License-Identifier: Apache-2.0
"""The thought: pure functions from values to values; time and randomness are arguments."""
