# SPDX-License-Identifier: Apache-2.0
"""The verbs: observe, act and reconcile, through ports only."""
