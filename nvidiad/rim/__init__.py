# SPDX-License-Identifier: Apache-2.0
"""The rim: event loop, signals and sockets."""
