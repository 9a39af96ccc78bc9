"""Drop-ins for lightly, under the names of its modules.

- `fastssl.compat.lightly.utils`: functions of `lightly.models.utils`.
"""
