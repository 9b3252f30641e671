# SPDX-License-Identifier: Apache-2.0
"""All of `nvidiad-image`, which makes the images that the daemon pulls; the daemon imports none of it."""
