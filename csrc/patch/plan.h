// Plans of masks: what describes a family, where the rows go, how much memory a sample takes. The
// seam between the operators and plan_team.h, in plain structs that a kernel takes by value.
//
// Blocks of four random words (common/philox.h), all of the sample and Purpose::kMask:
//   random plans   n / 4: word n % 4 ranks cell n
//   other plans    0: chance, range, ratio of block masks; aspect, top, left of the inverse block
//                  1: rows and columns that the mask is rolled by
//                  2: of sample 0 alone, the sizes of a batch's blocks (multiblock_masks.py)
//                  kSpots + n: target n; word n % 4 of kSpots + n / 4 completes a count
//                  kAttempts + n: attempt n at a block
#pragma once

#include "common/portable.h"

namespace fastssl {
namespace patch {

constexpr uint32_t kSpots = 1u << 26, kAttempts = 1u << 27;
constexpr int64_t kMostPatches = int64_t(1) << 23;  // so that ten attempts for each have a number
constexpr int32_t kMostRanges = 64;
constexpr int32_t kTries = 20;  // at a context, before a target may overlap it

// One sample's row of a plan (ops/patch/plan.py).
struct PlanRow {
  int64_t *shuffle, *restore;  // [L]
  bool* mask;                  // [L]
};

// A batch: where the draws come from and where the rows go.
struct PlanBatch {
  const int64_t* ids;   // [B]
  const int64_t* step;  // null: step_value
  int64_t step_value, seed, batch, length;
  int64_t *shuffle, *restore;  // [B, L]
  bool* mask;                  // [B, L]
  int64_t* lengths;            // [B], patches kept; null where all keep the same

  FASTSSL_HD PlanRow row(int64_t b) const {
    return {shuffle + b * length, restore + b * length, mask + b * length};
  }
};

// Cells of patches, ranked by (word, index): the first `keep` are kept.
struct RandomPlan {
  int32_t grid[3], cell[3];  // frames, rows, columns; a cell's size in patches divides the grid's
  int64_t keep;              // cells
  const int64_t* lengths;    // [B], cells, instead of `keep`; or null
  bool ordered;              // raster order; else, where cells are patches, the order of the words

  FASTSSL_HD int64_t cells() const {
    return int64_t(grid[0] / cell[0]) * (grid[1] / cell[1]) * (grid[2] / cell[2]);
  }
  FASTSSL_HD bool shuffled() const { return !ordered && cell[0] * cell[1] * cell[2] == 1; }
};

// Rectangles until `count` patches are removed: BEiT, iBOT, DINOv2 and DINOv3.
struct BlockPlan {
  int32_t rows, columns;
  const int64_t* counts;  // [B], patches to remove; null: from a ratio
  int32_t ranges;
  double ratio[kMostRanges][2];  // of which one is picked
  double probability;            // of removing anything
  int64_t area_least, area_most;
  double aspect[2];  // height / width, its logarithm
  bool exact;        // complete the count patch by patch
  bool roll;
};

// One rectangle is kept, as far as `keep` patches reach: CAPI.
struct InversePlan {
  int32_t rows, columns;
  int64_t keep;
  double aspect[2];  // height / width, its logarithm
  bool roll;
};

// Targets, and a context that keeps clear of them: I-JEPA.
struct MultiblockPlan {
  int32_t rows, columns;
  int32_t context[2], target[2];  // height, width
  int32_t targets;
  int64_t min_keep;
  bool allow_overlap;
  bool inclusive;       // positions reach the last row and column
  int64_t* target_ids;  // [B, targets, target[0] * target[1]]
};

struct Block {
  int32_t top, left, height, width;
};

// One bit for each patch of a grid, each row in 64-bit words of its own.
struct Bits {
  uint64_t* word;
  int32_t rows, columns;

  FASTSSL_HD int32_t pitch() const { return (columns + 63) / 64; }
  FASTSSL_HD int64_t words() const { return int64_t(rows) * pitch(); }
  FASTSSL_HD bool at(int32_t row, int32_t column) const {
    return word[int64_t(row) * pitch() + column / 64] >> (column % 64) & 1;
  }
};

FASTSSL_HD inline int64_t power_of_two(int64_t least) {
  int64_t n = 1;
  while (n < least) n *= 2;
  return n;
}

// 8-byte words of memory that a team of so many threads needs for one sample.
FASTSSL_HD inline int64_t scratch_words(const RandomPlan& p, int32_t threads) {
  return power_of_two(p.cells()) + threads;
}
FASTSSL_HD inline int64_t scratch_words(const BlockPlan& p, int32_t threads) {
  return Bits{nullptr, p.rows, p.columns}.words() + threads;
}
FASTSSL_HD inline int64_t scratch_words(const InversePlan&, int32_t threads) { return threads; }
FASTSSL_HD inline int64_t scratch_words(const MultiblockPlan& p, int32_t threads) {
  return Bits{nullptr, p.rows, p.columns}.words() + threads;
}

}  // namespace patch
}  // namespace fastssl
