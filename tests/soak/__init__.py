# SPDX-License-Identifier: Apache-2.0
"""The soak: thousands of looks of one daemon on a real host, and what they leave behind."""
