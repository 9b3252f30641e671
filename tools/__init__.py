# SPDX-License-Identifier: Apache-2.0
"""What whoever builds and ships nvidiad runs; none of it is shipped."""
