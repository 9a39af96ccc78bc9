// What becomes of one token in masked language modelling, drawn by counter: the same bits in C++,
// in CUDA and in ops/patch/reference_pretext.py. Devlin et al., "BERT", 2019.
#pragma once

#include "common/philox.h"

namespace fastssl {
namespace patch {

struct TokenRule {
  double probability;     // that a token is to be predicted
  double masked;          // of those: they become mask_id where the draw is below this,
  double masked_or_else;  // a random id where it is below this, and stay otherwise
  int64_t mask_id;
  uint64_t vocab_size;  // at most 2^31
};

namespace {

struct DrawnToken {
  int64_t input, label;
};

constexpr int64_t kNoLabel = -100;  // what PyTorch's cross entropy ignores

// `draws` are those of the row, Purpose::kTokens; `place` is the token's in its row, below 2^28.
FASTSSL_HD inline DrawnToken draw_token(const TokenRule& rule, const Draws& draws, uint32_t place,
                                        int64_t id, bool special) {
  const Words x = draws.block(place);
  if (special || unit(x.word[0]) >= rule.probability) return {id, kNoLabel};
  const double fate = unit(x.word[1]);
  if (fate < rule.masked) return {rule.mask_id, id};
  if (fate < rule.masked_or_else) return {int64_t(below(x.word[2], rule.vocab_size)), id};
  return {id, id};
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
