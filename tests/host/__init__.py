# SPDX-License-Identifier: Apache-2.0
"""The host bed: a host in namespaces with a real systemd, dockerd and registry, and a stand-in for kmod."""
