# SPDX-License-Identifier: Apache-2.0
"""The world: one file per foreign thing, each the only one that touches it."""
