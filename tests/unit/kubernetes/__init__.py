# SPDX-License-Identifier: Apache-2.0
"""Tables of the companion's decisions, and the files that are shipped for clusters."""
