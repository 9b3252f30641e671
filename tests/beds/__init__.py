# SPDX-License-Identifier: Apache-2.0
"""What the beds share: the cache, Debian packages for this machine, and Debian trees to boot from."""
