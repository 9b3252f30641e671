# SPDX-License-Identifier: Apache-2.0
"""Tables, properties and adapters on fake roots."""
