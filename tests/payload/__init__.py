# SPDX-License-Identifier: Apache-2.0
"""Stand-in driver payloads for the beds: trees, spoiled trees, and images of them. Never shipped."""
