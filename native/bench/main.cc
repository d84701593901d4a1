// vbdkit-bench: the limits that `vbdkit bench` compares the backend with, and the costs of its
// parts. One process measures one thing; it sets up once and then answers each line on stdin, a
// number of milliseconds, with one line of JSON, so that whoever drives it can interleave it with
// others.
//
//   vbdkit-bench memory-copy bytes=1073741824 cpu=1
#include <sys/prctl.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "bench/benchmark.h"

namespace vbd::bench {
namespace {

struct Entry {
    const char* name;
    const char* what;
    Made (*make)(Arguments&);
};

constexpr Entry kEntries[] = {
    {"memory-copy", "4 KiB copies from random pages: bytes= hot= cpu=", make_memory_copy},
    {"ping-pong", "round trips between two processes: kind=line|eventfd cpu= peer-cpu=",
     make_ping_pong},
    {"ring-loop", "a bare ring, both ends: depth= segments= cpu= peer-cpu= (same: one thread)",
     make_ring_loop},
    {"file-reads", "preadv2 one after the other: path= block= direct=0|1 cpu=", make_file_reads},
    {"uring-reads", "the same through io_uring: path= block= direct=0|1 cpu=", make_uring_reads},
    {"parse", "requests parsed and checked: segments= protocol=64|32 cpu=", make_parse},
    {"lookup", "grants found: kind=persistent|tree|flat entries= cpu=", make_lookup},
    {"page-pool", "pages taken and given back: pages= cpu=", make_page_pool},
    {"script-channel", "4 KiB reads to a script and back, one thread: depth= cpu=",
     make_script_channel},
    {"vhost-user", "a vhost-user-blk server under load: socket= depth= block= poll= write= cpu=",
     make_vhost_user},
};

void print_histogram(const Histogram& histogram) {
    std::printf("{\"count\":%lu,\"sum\":%lu,\"min\":%lu,\"max\":%lu,\"buckets\":[",
                histogram.count(), histogram.sum(), histogram.min(), histogram.max());
    const uint32_t used = histogram.used_buckets();
    for (uint32_t i = 0; i < used; i++) std::printf(i ? ",%lu" : "%lu", histogram.bucket(i));
    std::printf("]}");
}

void print(const Sample& sample) {
    std::printf("{\"operations\":%lu,\"errors\":%lu,\"elapsedNs\":%lu,\"cpuNs\":%lu,\"latencyNs\":",
                sample.operations, sample.errors, sample.elapsed_ns, sample.cpu_ns);
    print_histogram(sample.latency_ns);
    std::printf("}\n");
    std::fflush(stdout);
}

int fail(const std::string& why) {
    std::fprintf(stderr, "vbdkit-bench: %s\n", why.c_str());
    return 2;
}

int usage() {
    std::fprintf(stderr, "vbdkit-bench NAME [KEY=VALUE...]; then milliseconds, line by line\n");
    for (const Entry& entry : kEntries) std::fprintf(stderr, "  %-14s %s\n", entry.name, entry.what);
    return 2;
}

int serve(Benchmark& benchmark) {
    std::printf("{\"ready\":true}\n");
    std::fflush(stdout);
    uint64_t duration_ms = 0;
    while (std::cin >> duration_ms) {
        Sample sample;
        if (Status done = benchmark.run(duration_ms * 1'000'000, sample); !done) {
            return fail(done.error().message);
        }
        print(sample);
    }
    return 0;
}

int main(int count, char** words) {
    if (count < 2) return usage();
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it may be spinning on somebody's processor
    for (const Entry& entry : kEntries) {
        if (std::strcmp(entry.name, words[1]) != 0) continue;
        Result<Arguments> arguments = Arguments::parse(count - 2, words + 2);
        if (!arguments) return fail(arguments.error().message);
        Made made = entry.make(arguments.value());
        if (!made) return fail(made.error().message);
        const std::string unused = arguments.value().unused();
        if (!unused.empty()) return fail("not understood:" + unused);
        return serve(*made.value());
    }
    return usage();
}

}  // namespace
}  // namespace vbd::bench

int main(int count, char** words) {
    return vbd::bench::main(count, words);
}
