"""Functions and classes of other libraries by their own names, over fastssl's operators.

- `fastssl.compat.mae`: MAE's `random_masking`, `patchify`, `unpatchify`, `forward_loss`.
- `fastssl.compat.transformers`: `patch_vit_mae` for a Hugging Face ViTMAE model.
- `fastssl.compat.lightly.utils`: functions of `lightly.models.utils`.
- `fastssl.compat.lightly`: lightly's `NTXentLoss`, `DCLLoss`, `DCLWLoss`, `MemoryBankModule`,
  from `fastssl.compat.lightly.loss` and `fastssl.compat.lightly.memory_bank`.
- `fastssl.compat.solo_learn`: losses of solo-learn.
- `fastssl.compat.pytorch_metric_learning`: `NTXentLoss`, `SupConLoss`, `CrossBatchMemory`.
- `fastssl.compat.open_clip`: `ClipLoss`, `SigLipLoss`.
- `fastssl.compat.sentence_transformers`: `MultipleNegativesRankingLoss`, symmetric and cached.
- `fastssl.compat.timm`: `PatchDropout`, `PatchDropoutWithIndices`.
- `fastssl.compat.beit`: `MaskingGenerator` of BEiT, iBOT and DINOv2.
- `fastssl.compat.simmim`: `MaskGenerator`.
- `fastssl.compat.videomae`: `TubeMaskingGenerator`.

None of those libraries is needed to import these modules, but for pytorch-metric-learning and
sentence-transformers, whose classes ours are subclasses of. docs/compatibility.md says with which
versions they were compared and what differs.
"""
