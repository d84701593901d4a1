// Fuzzes the ring and the request parser as one: a hostile frontend's program against the model in
// ring_model.h.
//
//   S="-std=c++20 -O1 -g -Inative native/blkif/ring.cc native/blkif/request.cc"
//   F="-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DVBD_LIBFUZZER"
//   clang++-16 $F $S test/fuzz/request_fuzz.cc -o request_fuzz
//   ./request_fuzz -max_total_time=60 -max_len=4096
//
// Without VBD_LIBFUZZER it is a program of its own that runs random programs:
//   g++ -fsanitize=address,undefined $S test/fuzz/request_fuzz.cc -o request_fuzz
//   ./request_fuzz [programs] [seed]
#include <cstddef>
#include <cstdint>

#include "ring_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    vbd::test::RingModel(data, size).run();
    return 0;
}

#ifndef VBD_LIBFUZZER
#include <cstdio>
#include <random>

int main(int argc, char** argv) {
    const unsigned long programs = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 20000;
    const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1;
    std::mt19937_64 random(seed);
    std::vector<uint8_t> bytes;
    for (unsigned long i = 0; i < programs; ++i) {
        bytes.resize(random() % 4096);
        for (uint8_t& byte : bytes) byte = uint8_t(random());
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::printf("%lu programs from seed %lu: no difference\n", programs, seed);
    return 0;
}
#endif
