# SPDX-License-Identifier: Apache-2.0
"""The world of image making: each module adapts one foreign thing."""
