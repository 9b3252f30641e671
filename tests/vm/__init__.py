# SPDX-License-Identifier: Apache-2.0
"""The VM bed: a QEMU machine shaped like Container Linux, with real kernels and an emulated NVIDIA card."""
