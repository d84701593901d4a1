// The way to a script and back by itself: a queue of a script disk, and at the other end of its rings
// C++ that answers at once. Both on one thread, so that no change of threads and no JavaScript is part
// of it.
#include <memory>
#include <vector>

#include "base/reserved.h"
#include "base/units.h"
#include "bench/benchmark.h"
#include "block/io_context.h"
#include "block/script_device.h"
#include "block/script_memory.h"

namespace vbd::bench {

namespace {

constexpr uint64_t kDiskBytes = 1ull << 30;

class ScriptChannelTrip final : public Benchmark {
  public:
    static Made make(Arguments& arguments) {
        const auto depth = static_cast<uint32_t>(arguments.number("depth", 32));
        if (Status pinned = pin_to(static_cast<int>(arguments.number("cpu", 0))); !pinned) {
            return pinned.error();
        }
        auto self = std::unique_ptr<ScriptChannelTrip>(new ScriptChannelTrip);
        if (Status ready = self->set_up(depth); !ready) return ready.error();
        return std::unique_ptr<Benchmark>(std::move(self));
    }

    ~ScriptChannelTrip() override {
        if (channel_) channel_->detach();
    }

    Status run(uint64_t duration_ns, Sample& sample) override {
        repeat(duration_ns, batch_.size(), sample, [&] {
            for (size_t i = 0; i < ios_.size(); i++) {
                parts_[i] = {pages_.data() + i * kPageSize, kPageSize};
                ios_[i].iov = &parts_[i];
                ios_[i].iov_count = 1;
                ios_[i].offset = random_.below(kDiskBytes / kPageSize) * kPageSize;
                ios_[i].length = kPageSize;
            }
            queue_->submit(batch_);
            uint32_t back = 0;
            while (back < batch_.size()) {
                if (answer_all() > 0) channel_->kick();
                context_->poll();
                for (block::Io* io = queue_->reap(); io != nullptr; io = io->next) {
                    sample.errors += io->error != 0;
                    back++;
                }
            }
        });
        return {};
    }

  private:
    ScriptChannelTrip() = default;

    Status set_up(uint32_t depth) {
        auto pages = ReservedArray<uint8_t>::create(size_t{depth} * kPageSize);
        if (!pages) return pages.error();
        pages_ = std::move(pages).value();
        auto channel = block::ScriptChannel::create(
            {.concurrency = depth, .deadline_ns = 30'000'000'000},
            [](const block::ScriptChannel::Overdue&) {});
        if (!channel) return channel.error();
        channel_ = std::move(channel).value();
        block::Geometry geometry;
        geometry.size_bytes = kDiskBytes;
        auto device = block::ScriptDevice::create(geometry, channel_);
        if (!device) return device.error();
        device_ = std::move(device).value();
        auto context = block::IoContext::create({});
        if (!context) return context.error();
        context_ = std::move(context).value();
        auto queue = device_->open_queue(*context_);
        if (!queue) return queue.error();
        queue_ = std::move(queue).value();

        auto* base = static_cast<uint8_t*>(channel_->control().iov_base);
        const block::ScriptLayout layout(sizeof(block::ScriptIndices),
                                         channel_->submission_entries(),
                                         channel_->answer_entries(), channel_->slots());
        indices_ = reinterpret_cast<block::ScriptIndices*>(base);
        submissions_ = reinterpret_cast<uint32_t*>(base + layout.submissions);
        answers_ = reinterpret_cast<block::ScriptAnswer*>(base + layout.answers);
        channel_->attach([] {});
        ios_ = std::vector<block::Io>(depth);
        parts_ = std::vector<iovec>(depth);
        for (block::Io& io : ios_) batch_.push_back(&io);
        return {};
    }

    /// What the script does: takes what is there, answers it. Returns how many there were.
    uint32_t answer_all() {
        const uint32_t end = indices_->submitted.value.load(std::memory_order_acquire);
        uint32_t taken = indices_->taken.value.load(std::memory_order_relaxed);
        uint32_t answered = indices_->answered.value.load(std::memory_order_relaxed);
        const uint32_t count = end - taken;
        for (; taken != end; taken++, answered++) {
            const uint32_t slot = submissions_[taken & (channel_->submission_entries() - 1)];
            answers_[answered & (channel_->answer_entries() - 1)] = {slot, 0};
        }
        indices_->taken.value.store(taken, std::memory_order_release);
        indices_->answered.value.store(answered, std::memory_order_release);
        return count;
    }

    // In the order in which they need each other.
    ReservedArray<uint8_t> pages_;
    std::shared_ptr<block::ScriptChannel> channel_;
    std::unique_ptr<block::Device> device_;
    std::unique_ptr<block::IoContext> context_;
    std::unique_ptr<block::DeviceQueue> queue_;
    block::ScriptIndices* indices_ = nullptr;
    uint32_t* submissions_ = nullptr;
    block::ScriptAnswer* answers_ = nullptr;
    std::vector<block::Io> ios_;
    std::vector<iovec> parts_;
    std::vector<block::Io*> batch_;
    Random random_{1};
};

}  // namespace

Made make_script_channel(Arguments& arguments) {
    return ScriptChannelTrip::make(arguments);
}

}  // namespace vbd::bench
