// The parts of the native engine, one at a time: parsing, finding a grant, the page pool, and a
// bare ring with nothing behind it.
#include <algorithm>
#include <atomic>
#include <map>
#include <thread>
#include <vector>

#include "base/reserved.h"
#include "bench/benchmark.h"
#include "blkif/request.h"
#include "blkif/ring.h"
#include "guest/front_ring.h"
#include "memory/page_pool.h"
#include "memory/persistent_grants.h"

namespace vbd::bench {

namespace {

constexpr uint64_t kBatch = 4096;
constexpr uint64_t kDiskSectors = 1u << 21;
constexpr GrantRef kFirstRef = 8;

blkif::Limits disk_limits() {
    blkif::Limits limits;
    limits.capacity_sectors = kDiskSectors;
    return limits;
}

std::vector<blkif::Segment> whole_pages(uint32_t count) {
    std::vector<blkif::Segment> segments;
    for (uint32_t i = 0; i < count; i++) segments.push_back({kFirstRef + i, 0, 7, 0});
    return segments;
}

Error out_of_range(const char* what) {
    return Error{ErrorKind::kInvalidArgument, 0, what};
}

Status pin(Arguments& arguments) {
    return pin_to(static_cast<int>(arguments.number("cpu", 0)));
}

/// A ring page with a load on it: a frontend that keeps `depth` requests in flight, and a backend
/// that takes, parses and answers them. On one thread, or on two.
class RingLoop final : public Benchmark {
  public:
    RingLoop(ReservedArray<uint8_t> page, uint32_t depth, uint32_t segments, int cpu, int peer_cpu)
        : page_(std::move(page)),
          depth_(depth),
          segments_(whole_pages(segments)),
          cpu_(cpu),
          peer_cpu_(peer_cpu) {}

    Status run(uint64_t duration_ns, Sample& sample) override {
        guest::FrontRing::initialise(page_.data());
        auto front = guest::FrontRing::attach(page_.data(), 1, blkif::Protocol::kX86_64);
        auto back = blkif::BackRing::attach(page_.data(), 1, blkif::Protocol::kX86_64);
        if (!front) return front.error();
        if (!back) return back.error();
        if (Status pinned = pin_to(cpu_); !pinned) return pinned;
        const bool alone = peer_cpu_ < 0;
        std::atomic<bool> stop{false};
        std::thread peer;
        if (!alone) {
            peer = std::thread([&] {
                (void)!!pin_to(peer_cpu_);
                while (!stop.load(std::memory_order_relaxed)) {
                    if (!serve(back.value())) relax();
                }
            });
        }
        repeat(duration_ns, 0, sample, [&] {
            for (uint32_t i = 0; i < 256; i++) {
                drive(front.value(), sample.operations);
                if (alone) serve(back.value());
            }
        });
        stop.store(true);
        if (peer.joinable()) peer.join();
        return {};
    }

  private:
    void drive(guest::FrontRing& ring, uint64_t& answered) {
        VBD_CHECK(ring.begin_pass());
        guest::FrontResponse response;
        while (ring.next(response)) answered++;
        while (ring.in_flight() < depth_) {
            ring.write_data(blkif::Operation::kRead, ++id_, random_.below(kDiskSectors / 256) * 8,
                            segments_);
        }
        ring.push();
    }

    bool serve(blkif::BackRing& ring) {
        VBD_CHECK(ring.begin_pass());
        blkif::RawSlot slot;
        blkif::Request request;
        bool worked = false;
        while (ring.next(slot)) {
            const auto reject =
                blkif::parse(blkif::Protocol::kX86_64, slot, disk_limits(), request);
            ring.respond(request.id, request.wire_operation, blkif::status_of(reject));
            worked = true;
        }
        ring.push();
        return worked;
    }

    ReservedArray<uint8_t> page_;
    const uint32_t depth_;
    const std::vector<blkif::Segment> segments_;
    const int cpu_;
    const int peer_cpu_;
    Random random_{1};
    uint64_t id_ = 0;
};

/// Private copies of slots, parsed again and again.
class Parse final : public Benchmark {
  public:
    Parse(blkif::Protocol protocol, std::vector<blkif::RawSlot> slots)
        : protocol_(protocol), slots_(std::move(slots)) {}

    Status run(uint64_t duration_ns, Sample& sample) override {
        const blkif::Limits limits = disk_limits();
        blkif::Request request;
        repeat(duration_ns, slots_.size(), sample, [&] {
            for (const blkif::RawSlot& slot : slots_) {
                sample.errors +=
                    blkif::parse(protocol_, slot, limits, request) != blkif::Reject::kNone;
                keep(request);
            }
        });
        return {};
    }

  private:
    const blkif::Protocol protocol_;
    const std::vector<blkif::RawSlot> slots_;
};

/// Pages that nobody looks into.
class FakeGrants final : public xen::GrantTable {
  public:
    Result<void*> map(DomainId, std::span<const GrantRef> refs, xen::Access) override {
        return reinterpret_cast<void*>(uintptr_t{refs[0]} * kPageSize);
    }
    Status unmap(void*, uint32_t) override { return {}; }
    Status copy(DomainId, std::span<xen::GrantCopy>) override { return {}; }
};

/// Each lookup waits for the one before it, as in a reactor that has one request at a time.
template <typename Find>
class Lookup final : public Benchmark {
  public:
    Lookup(std::vector<GrantRef> refs, Find find) : refs_(std::move(refs)), find_(std::move(find)) {}

    Status run(uint64_t duration_ns, Sample& sample) override {
        const uint64_t mask = refs_.size() - 1;
        repeat(duration_ns, kBatch, sample, [&] {
            for (uint64_t i = 0; i < kBatch; i++) {
                const GrantRef ref = refs_[(next_ + (last_ & 1)) & mask];
                last_ = reinterpret_cast<uintptr_t>(find_(ref));
                next_++;
            }
            keep(last_);
        });
        return {};
    }

  private:
    const std::vector<GrantRef> refs_;  // a power of two
    Find find_;
    uint64_t next_ = 0;
    uintptr_t last_ = 0;
};

template <typename Find>
Made lookup_of(std::vector<GrantRef> refs, Find find) {
    return std::unique_ptr<Benchmark>(new Lookup<Find>(std::move(refs), std::move(find)));
}

void* page_of(GrantRef ref) {
    return reinterpret_cast<void*>(uintptr_t{ref} * kPageSize);
}

/// A bare table by reference: what a lookup cannot be faster than.
Made flat_lookup(const std::vector<GrantRef>& granted, std::vector<GrantRef> asked) {
    std::vector<void*> table(granted.size() + kFirstRef);
    for (const GrantRef ref : granted) table[ref] = page_of(ref);
    return lookup_of(std::move(asked), [table = std::move(table)](GrantRef ref) -> void* {
        return ref < table.size() ? table[ref] : nullptr;
    });
}

Made tree_lookup(const std::vector<GrantRef>& granted, std::vector<GrantRef> asked) {
    std::map<GrantRef, void*> tree;
    for (const GrantRef ref : granted) tree[ref] = page_of(ref);
    return lookup_of(std::move(asked),
                     [tree = std::move(tree)](GrantRef ref) { return tree.find(ref)->second; });
}

/// What the engine does for each page: find, pin, take the address, let go.
Made persistent_lookup(const std::vector<GrantRef>& granted, std::vector<GrantRef> asked) {
    static FakeGrants grants;
    auto made = memory::PersistentGrants::create(grants, 1, static_cast<uint32_t>(granted.size()));
    if (!made) return made.error();
    std::shared_ptr<memory::PersistentGrants> cache = std::move(made).value();
    for (const GrantRef ref : granted) {
        uint32_t entry = 0;
        if (cache->insert(ref, 0, entry) != memory::PersistentGrants::Insert::kInserted) {
            return out_of_range("the cache takes no more grants");
        }
        cache->release(entry);
    }
    return lookup_of(std::move(asked), [cache = std::move(cache)](GrantRef ref) {
        const uint32_t entry = cache->acquire(ref, 1);
        void* address = cache->address(entry);
        cache->release(entry);
        return address;
    });
}

class Pool final : public Benchmark {
  public:
    Pool(std::unique_ptr<memory::PagePool> pool, uint32_t pages)
        : pool_(std::move(pool)), pages_(pages) {}

    Status run(uint64_t duration_ns, Sample& sample) override {
        repeat(duration_ns, kBatch, sample, [&] {
            for (uint64_t i = 0; i < kBatch; i++) {
                sample.errors += !pool_->acquire(pages_);
                keep(pages_.data());
                pool_->release(pages_);
            }
        });
        return {};
    }

  private:
    std::unique_ptr<memory::PagePool> pool_;
    std::vector<void*> pages_;
};

}  // namespace

Made make_ring_loop(Arguments& arguments) {
    const auto depth = static_cast<uint32_t>(arguments.number("depth", 32));
    const auto segments = static_cast<uint32_t>(arguments.number("segments", 1));
    const int cpu = static_cast<int>(arguments.number("cpu", 0));
    const std::string peer = arguments.text("peer-cpu", "1");
    if (depth == 0 || depth > 32 || segments == 0 || segments > blkif::kMaxSegments) {
        return out_of_range("depth= is 1 to 32, segments= 1 to 11");
    }
    auto page = ReservedArray<uint8_t>::create(kPageSize);
    if (!page) return page.error();
    const int peer_cpu = peer == "same" ? -1 : std::atoi(peer.c_str());
    return std::unique_ptr<Benchmark>(
        new RingLoop(std::move(page).value(), depth, segments, cpu, peer_cpu));
}

Made make_parse(Arguments& arguments) {
    const auto segments = static_cast<uint32_t>(arguments.number("segments", 1));
    const bool is_64 = arguments.number("protocol", 64) == 64;
    if (segments == 0 || segments > blkif::kMaxSegments) return out_of_range("segments= is 1 to 11");
    if (Status pinned = pin(arguments); !pinned) return pinned.error();
    const blkif::Protocol protocol = is_64 ? blkif::Protocol::kX86_64 : blkif::Protocol::kX86_32;
    auto page = ReservedArray<uint8_t>::create(kPageSize);
    if (!page) return page.error();
    guest::FrontRing::initialise(page.value().data());
    auto front = guest::FrontRing::attach(page.value().data(), 1, protocol);
    auto back = blkif::BackRing::attach(page.value().data(), 1, protocol);
    if (!front) return front.error();
    if (!back) return back.error();
    const std::vector<blkif::Segment> pages = whole_pages(segments);
    Random random(1);
    std::vector<blkif::RawSlot> slots(32);
    for (uint64_t i = 0; i < slots.size(); i++) {
        const auto operation = i % 2 ? blkif::Operation::kWrite : blkif::Operation::kRead;
        front.value().write_data(operation, i, random.below(kDiskSectors / 256), pages);
    }
    front.value().push();
    VBD_CHECK(back.value().begin_pass());
    for (blkif::RawSlot& slot : slots) VBD_CHECK(back.value().next(slot));
    return std::unique_ptr<Benchmark>(new Parse(protocol, std::move(slots)));
}

Made make_lookup(Arguments& arguments) {
    const std::string kind = arguments.text("kind", "persistent");
    const uint64_t entries = arguments.number("entries", 1056);
    if (entries == 0 || entries > memory::PersistentGrants::kMaxCap) {
        return out_of_range("entries= is 1 to 1000000");
    }
    if (Status pinned = pin(arguments); !pinned) return pinned.error();
    Random random(1);
    std::vector<GrantRef> granted(entries);
    for (uint64_t i = 0; i < entries; i++) granted[i] = kFirstRef + static_cast<GrantRef>(i);
    for (uint64_t i = entries; i-- > 1;) std::swap(granted[i], granted[random.below(i + 1)]);
    std::vector<GrantRef> asked(1u << 20);
    for (GrantRef& ref : asked) ref = kFirstRef + static_cast<GrantRef>(random.below(entries));
    if (kind == "persistent") return persistent_lookup(granted, std::move(asked));
    if (kind == "tree") return tree_lookup(granted, std::move(asked));
    if (kind == "flat") return flat_lookup(granted, std::move(asked));
    return out_of_range("kind= is persistent, tree or flat");
}

Made make_page_pool(Arguments& arguments) {
    const auto pages = static_cast<uint32_t>(arguments.number("pages", 11));
    if (pages == 0 || pages > 4096) return out_of_range("pages= is 1 to 4096");
    if (Status pinned = pin(arguments); !pinned) return pinned.error();
    auto pool = memory::PagePool::create(1u << 16, 1024);
    if (!pool) return pool.error();
    return std::unique_ptr<Benchmark>(new Pool(std::move(pool).value(), pages));
}

}  // namespace vbd::bench
