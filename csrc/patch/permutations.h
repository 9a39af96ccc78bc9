// Sets of permutations that differ in many places, for jigsaw puzzles.
#pragma once

#include <cstdint>
#include <vector>

namespace fastssl {
namespace patch {

enum class Criterion { kMaxAvg, kMaxMin };

constexpr int64_t kMostTiles = 10;

// [count, tiles]: the first permutation is drawn, each further one has the largest mean (kMaxAvg)
// or least (kMaxMin) Hamming distance to those before it; of several, the first in lexicographic
// order. Noroozi & Favaro, "Unsupervised learning of visual representations by solving jigsaw
// puzzles", 2016. Throws std::invalid_argument unless 1 <= tiles <= kMostTiles and 1 <= count <=
// tiles!.
std::vector<uint8_t> hamming_permutations(int64_t count, int64_t tiles, Criterion criterion,
                                          uint64_t seed);

}  // namespace patch
}  // namespace fastssl
