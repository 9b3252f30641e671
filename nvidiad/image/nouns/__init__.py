# SPDX-License-Identifier: Apache-2.0
"""The nouns of image making: names and values; they touch nothing."""
