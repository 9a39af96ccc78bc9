"""Drop-ins for lightly, under the names of its modules.

- `fastssl.compat.lightly.utils`: functions of `lightly.models.utils`.
- `fastssl.compat.lightly.loss`: `NTXentLoss`, `DCLLoss`, `DCLWLoss`, and a `SupConLoss`.
- `fastssl.compat.lightly.memory_bank`: `MemoryBankModule`.
"""

from fastssl.compat.lightly.loss import DCLLoss, DCLWLoss, NTXentLoss, SupConLoss
from fastssl.compat.lightly.memory_bank import MemoryBankModule

__all__ = ["DCLLoss", "DCLWLoss", "MemoryBankModule", "NTXentLoss", "SupConLoss"]
