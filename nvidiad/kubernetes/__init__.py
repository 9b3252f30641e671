# SPDX-License-Identifier: Apache-2.0
"""The companion in a Kubernetes cluster: tells a reboot coordinator what nvidiad says of this node."""
