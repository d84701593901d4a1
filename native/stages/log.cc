#include "stages/log.h"

#include <algorithm>
#include <bit>

#include "base/clock.h"
#include "stages/slots.h"

namespace vbd::stages {

using block::Io;
using block::IoRecord;

namespace {

/// Requests of one queue that are followed at once; more than a ring holds.
constexpr size_t kFollowed = 1024;

/// What an Io's tag points to while it is below. The guest's tag comes back with it.
struct Followed {
    void* tag = nullptr;
    IoRecord record;
    Followed* next_free = nullptr;
};

class LogQueue final : public StageQueue {
  public:
    LogQueue(std::unique_ptr<block::DeviceQueue> base, std::shared_ptr<RecordRing> ring)
        : StageQueue(std::move(base)), ring_(std::move(ring)), followed_(kFollowed) {}

    void submit(std::span<Io* const> batch) override {
        const uint64_t now_ns = monotonic_ns();
        for (Io* io : batch) {
            Followed* one = followed_.take();
            if (!one) continue;
            one->tag = io->tag;
            one->record = {.started_ns = now_ns,
                           .offset = io->offset,
                           .length = io->length,
                           .op = io->op,
                           .fua = io->fua};
            io->tag = one;
        }
        base_->submit(batch);
    }

    Io* reap() override {
        Io* list = base_->reap();
        if (!list) return nullptr;
        const uint64_t now_ns = monotonic_ns();
        for (Io* io = list; io; io = io->next) {
            if (!followed_.contains(io->tag)) continue;
            auto* one = static_cast<Followed*>(io->tag);
            one->record.elapsed_ns = now_ns - one->record.started_ns;
            one->record.error = io->error;
            ring_->put(one->record);
            io->tag = one->tag;
            followed_.give_back(one);
        }
        return list;
    }

  private:
    std::shared_ptr<RecordRing> ring_;
    Slots<Followed> followed_;
};

}  // namespace

void RecordRing::put(const IoRecord& record) {
    const uint32_t head = head_.load(std::memory_order_relaxed);
    if (head - tail_.load(std::memory_order_acquire) > mask_) {
        lost_.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    records_[head & mask_] = record;
    head_.store(head + 1, std::memory_order_release);
}

void RecordRing::take_all(std::vector<IoRecord>& to) {
    const uint32_t head = head_.load(std::memory_order_acquire);
    uint32_t tail = tail_.load(std::memory_order_relaxed);
    for (; tail != head; tail++) to.push_back(records_[tail & mask_]);
    tail_.store(tail, std::memory_order_release);
}

Result<std::unique_ptr<block::Device>> Log::open(const LogOptions& options,
                                                 std::unique_ptr<block::Device> base) {
    if (options.records < 64 || options.records > (1u << 20) ||
        !std::has_single_bit(options.records)) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a log keeps a power of two of records, 64 to 1048576"};
    }
    return std::unique_ptr<block::Device>(new Log(options, std::move(base)));
}

Log::Log(const LogOptions& options, std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), options_(options) {
    describe("log");
}

Result<std::unique_ptr<block::DeviceQueue>> Log::open_queue(block::IoContext& context) {
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    auto ring = std::make_shared<RecordRing>(options_.records);
    {
        const std::lock_guard lock(mutex_);
        rings_.push_back(ring);
    }
    return std::unique_ptr<block::DeviceQueue>(
        new LogQueue(std::move(base).value(), std::move(ring)));
}

uint64_t Log::take_records(std::vector<IoRecord>& records) {
    const std::lock_guard lock(mutex_);
    const size_t before = records.size();
    uint64_t lost = 0;
    for (const auto& ring : rings_) {
        ring->take_all(records);
        lost += ring->take_lost();
    }
    // The ring of a queue that is gone has told everything.
    std::erase_if(rings_, [](const auto& ring) { return ring.use_count() == 1; });
    std::sort(records.begin() + static_cast<ptrdiff_t>(before), records.end(),
              [](const IoRecord& a, const IoRecord& b) { return a.started_ns < b.started_ns; });
    return lost;
}

}  // namespace vbd::stages
