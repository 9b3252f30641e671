# SPDX-License-Identifier: Apache-2.0
"""The companion as a program: against stand-ins of the API server and of FLUO, and nvidiad's real server."""
