# SPDX-License-Identifier: Apache-2.0
"""The nouns: frozen values that touch nothing."""
