# SPDX-License-Identifier: Apache-2.0
"""What docs/performance.md claims, measured: every figure beside one of the same run."""
