# SPDX-License-Identifier: Apache-2.0
"""What docs/performance.md claims, measured: each figure as a ratio to something measured in the same run."""
