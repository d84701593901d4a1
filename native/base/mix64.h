// mix64: 64 bits that look random, out of a seed and a number: the n-th output of SplitMix64.
#pragma once

#include <cstdint>

namespace vbd {

constexpr uint64_t mix64(uint64_t seed, uint64_t n) {
    uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

}  // namespace vbd
