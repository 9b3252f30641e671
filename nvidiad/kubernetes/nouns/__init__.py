# SPDX-License-Identifier: Apache-2.0
"""What the companion speaks of."""
