// Philox4x32-10: random numbers as a function of a counter and a key.
//
// J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
// A draw is addressed by what it is for, (seed, step, sample, view, number of the draw), so that it
// is the same on every device, in every order of work and for every split of a batch.
#pragma once

#include "common/portable.h"

namespace fastssl {
namespace {

// What a counter's draws are for: operators never share numbers.
enum class Purpose : uint32_t { kAugment = 0, kMask = 1, kTokens = 2, kPretext = 3 };

struct Words {
  uint32_t word[4];
};

FASTSSL_HD inline Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * counter.word[0];
    const uint64_t b = uint64_t(0xCD9E8D57u) * counter.word[2];
    counter = {{uint32_t(b >> 32) ^ counter.word[1] ^ key0, uint32_t(b),
                uint32_t(a >> 32) ^ counter.word[3] ^ key1, uint32_t(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The numbers of one view of one sample, four to a block.
struct Draws {
  uint64_t seed, sample;
  uint32_t step, stream;

  FASTSSL_HD Draws(uint64_t seed_, uint64_t step_, uint64_t sample_, Purpose purpose, uint32_t view)
      : seed(seed_),
        sample(sample_),
        step(uint32_t(step_)),
        stream(uint32_t(purpose) << 28 | view << 12) {}

  FASTSSL_HD Words block(uint32_t number) const {
    return philox({{uint32_t(sample), uint32_t(sample >> 32), step, stream | number}},
                  uint32_t(seed), uint32_t(seed >> 32));
  }
};

// In [0, 1), exactly.
FASTSSL_HD inline double unit(uint32_t word) { return double(word) * 0x1p-32; }

// A whole number in [0, count), count <= 2^32.
FASTSSL_HD inline uint32_t below(uint32_t word, uint64_t count) {
  return uint32_t(uint64_t(word) * count >> 32);
}

}  // namespace
}  // namespace fastssl
