# SPDX-License-Identifier: Apache-2.0
"""The verbs of image making: what nvidiad-image does, in the order in which it does it."""
