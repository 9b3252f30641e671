# SPDX-License-Identifier: Apache-2.0
"""Tests: unit (pure and adapters), host (namespaces), vm (real kernels)."""
