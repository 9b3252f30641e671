# SPDX-License-Identifier: Apache-2.0
"""The thought of image making: pure functions over values."""
