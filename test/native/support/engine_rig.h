// EngineRig: a guest with rings on FakeXen, a reactor or more, and a vbd on a device of the test's
// choice. The guest's calls are synchronous: submit, then wait for the answers on the event
// channel.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>

#include <functional>
#include <future>
#include <random>

#include "block/open_device.h"
#include "engine/vbd.h"
#include "guest/front_ring.h"
#include "support/fake_xen.h"

namespace vbd::test {

using namespace std::chrono_literals;
using blkif::Operation;
using blkif::Protocol;
using blkif::Segment;

/// A disk whose completions the test decides. Ios wait in the order in which they came, over all
/// rings.
class ManualDevice : public block::Device {
  public:
    explicit ManualDevice(uint64_t size) {
        geometry_.size_bytes = size;
        geometry_.can_discard = true;
        size_bytes_ = size;
    }
    const block::Geometry& geometry() const override { return geometry_; }
    Status resize(uint64_t size) override {
        size_bytes_ = size;
        return {};
    }
    Result<uint64_t> refresh_size() override { return size_bytes_.load(); }
    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override {
        return std::unique_ptr<block::DeviceQueue>(std::make_unique<ManualQueue>(*this, context));
    }

    /// Called on the reactor's thread before it takes a batch. Set while no ring is connected.
    std::function<void()> on_submit;

    /// Waits until `count` Ios wait, and returns their operations.
    std::vector<block::IoOp> wait_for(size_t count) {
        std::unique_lock lock(mutex_);
        bool came = changed_.wait_for(lock, 10s, [&] { return waiting_.size() >= count; });
        REQUIRE(came);
        std::vector<block::IoOp> operations;
        for (auto& held : waiting_) operations.push_back(held.io->op);
        return operations;
    }
    size_t waiting() {
        std::lock_guard lock(mutex_);
        return waiting_.size();
    }
    /// Completes the oldest `count`.
    void complete(size_t count, int32_t error = 0) {
        for (size_t i = 0; i < count; i++) {
            Held held;
            {
                std::lock_guard lock(mutex_);
                REQUIRE(!waiting_.empty());
                held = waiting_.front();
                waiting_.erase(waiting_.begin());
            }
            held.io->error = error;
            held.context->complete_from_thread(held.io);
        }
    }

  private:
    struct Held {
        block::Io* io = nullptr;
        block::IoContext* context = nullptr;
    };
    class ManualQueue : public block::DeviceQueue {
      public:
        ManualQueue(ManualDevice& device, block::IoContext& context)
            : device_(device), context_(context) {}
        void submit(std::span<block::Io* const> batch) override {
            if (device_.on_submit) device_.on_submit();
            std::lock_guard lock(device_.mutex_);
            for (block::Io* io : batch) {
                io->queue = this;
                context_.note_started();
                device_.waiting_.push_back({io, &context_});
            }
            device_.changed_.notify_all();
        }

      private:
        ManualDevice& device_;
        block::IoContext& context_;
    };

    block::Geometry geometry_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Held> waiting_;
};

inline std::shared_ptr<block::Device> memory_disk(uint64_t bytes) {
    block::DeviceOptions options;
    options.driver = block::Driver::kMemory;
    options.size_bytes = bytes;
    return std::shared_ptr<block::Device>(std::move(block::open_device(options)).value());
}

struct RigOptions {
    uint32_t rings = 1;
    uint32_t ring_pages = 1;
    Protocol protocol = Protocol::kX86_64;
    engine::TransferChoice transfer = engine::TransferChoice::kAuto;
    bool persistent = true;  // the frontend's word
    uint32_t reactors = 1;
    uint32_t poll_us = 20;
    uint32_t max_indirect = 256;
    uint32_t data_pages = 1024;
    bool read_only = false;
};

class EngineRig {
  public:
    static constexpr GrantRef kFirstRing = 8;
    static constexpr GrantRef kFirstData = 1000;

    EngineRig(std::shared_ptr<block::Device> device, RigOptions options = {})
        : options(options),
          xen(std::make_shared<FakeXen>(options.rings * options.ring_pages + options.data_pages)) {
        for (uint32_t i = 0; i < options.reactors; i++) {
            engine::Reactor::Options reactor_options{"test-" + std::to_string(i), options.poll_us,
                                                     1024};
            reactors.push_back(std::move(engine::Reactor::start(reactor_options)).value());
        }
        engine::Features features;
        features.transfer = options.transfer;
        features.max_indirect_segments = options.max_indirect;
        features.discard = device->geometry().can_discard;
        features.read_only = options.read_only;
        vbd = engine::Vbd::create("1:51712", std::move(device), features,
                                  [this](engine::Event event) {
                                      std::lock_guard lock(mutex_);
                                      events_.push_back(std::move(event));
                                      changed_.notify_all();
                                  });
        for (uint32_t i = 0; i < options.data_pages; i++)
            xen->grant(kFirstData + i, first_data_page() + i);
        make_rings();
    }
    ~EngineRig() {
        disconnect();
        CHECK(xen->mapped_pages == 0);
        CHECK(xen->bound_ports == 0);
    }

    uint32_t first_data_page() const { return options.rings * options.ring_pages; }
    uint8_t* data(uint32_t index) { return xen->page(first_data_page() + index); }
    GrantRef data_ref(uint32_t index) const { return kFirstData + index; }
    /// A whole page as a segment.
    Segment segment(uint32_t data_page, uint8_t first = 0, uint8_t last = 7) const {
        return Segment{data_ref(data_page), first, last, 0};
    }

    /// Of the connects to come.
    engine::TakeOver take_over = engine::TakeOver::kNone;

    engine::ConnectionSpec spec() const {
        engine::ConnectionSpec connection;
        connection.domain = 1;
        connection.protocol = options.protocol;
        connection.persistent = options.persistent;
        connection.take_over = take_over;
        for (uint32_t i = 0; i < options.rings; i++) {
            engine::RingSpec ring;
            for (uint32_t p = 0; p < options.ring_pages; p++) {
                ring.ring_refs.push_back(kFirstRing + i * options.ring_pages + p);
            }
            ring.remote_port = ports[i];
            connection.rings.push_back(ring);
        }
        return connection;
    }

    Result<memory::Strategy> connect() {
        auto outcome = std::make_shared<std::promise<Result<memory::Strategy>>>();
        auto future = outcome->get_future();
        std::vector<engine::Reactor*> choice = lent;
        for (auto& reactor : reactors) choice.push_back(reactor.get());
        vbd->connect(spec(), xen, choice,
                     [outcome](Result<memory::Strategy> r) { outcome->set_value(std::move(r)); });
        REQUIRE(future.wait_for(10s) == std::future_status::ready);
        return future.get();
    }
    std::future<void> start_disconnect() {
        auto gone = std::make_shared<std::promise<void>>();
        vbd->disconnect([gone] { gone->set_value(); });
        return gone->get_future();
    }
    void disconnect() { REQUIRE(start_disconnect().wait_for(10s) == std::future_status::ready); }

    /// Publishes what was written to the ring, with a notification if the backend wants one.
    void push(uint32_t ring = 0) {
        if (!fronts[ring].push()) return;
        uint64_t one = 1;
        (void)!::write(xen->channel(ports[ring]).to_back.get(), &one, sizeof one);
    }
    /// The next `count` answers of a ring.
    std::vector<guest::FrontResponse> collect(uint32_t count, uint32_t ring = 0) {
        std::vector<guest::FrontResponse> responses;
        auto deadline = std::chrono::steady_clock::now() + 10s;
        while (responses.size() < count) {
            REQUIRE(fronts[ring].begin_pass());
            guest::FrontResponse response;
            while (responses.size() < count && fronts[ring].next(response))
                responses.push_back(response);
            if (responses.size() == count || fronts[ring].final_check()) continue;
            REQUIRE_MESSAGE(std::chrono::steady_clock::now() < deadline,
                            "the backend did not answer");
            pollfd wait{xen->channel(ports[ring]).to_front.get(), POLLIN, 0};
            ::poll(&wait, 1, 100);
            uint64_t drained;
            (void)!::read(wait.fd, &drained, sizeof drained);
        }
        return responses;
    }
    /// True when the ring has no answer within a short while: for what must not happen.
    bool silent(uint32_t ring = 0) {
        pollfd wait{xen->channel(ports[ring]).to_front.get(), POLLIN, 0};
        uint64_t drained;
        (void)!::read(wait.fd, &drained, sizeof drained);
        fronts[ring].final_check();
        ::poll(&wait, 1, 50);
        fronts[ring].begin_pass();
        guest::FrontResponse response;
        return !fronts[ring].next(response);
    }
    int16_t transact(Operation operation, uint64_t sector, std::vector<Segment> segments,
                     uint32_t ring = 0) {
        fronts[ring].write_data(operation, ++next_id, sector, segments);
        push(ring);
        auto responses = collect(1, ring);
        CHECK(responses[0].id == next_id);
        CHECK(responses[0].operation == static_cast<uint8_t>(operation));
        return responses[0].status;
    }

    std::vector<engine::Event> wait_for_events(size_t count) {
        std::unique_lock lock(mutex_);
        bool came = changed_.wait_for(lock, 10s, [&] { return events_.size() >= count; });
        REQUIRE(came);
        return events_;
    }
    const engine::QueueCounters& counters(uint32_t ring = 0) const {
        return *vbd->counters()[ring];
    }

    void make_rings() {
        fronts.clear();
        ports.clear();
        for (uint32_t i = 0; i < options.rings; i++) {
            for (uint32_t p = 0; p < options.ring_pages; p++) {
                xen->grant(kFirstRing + i * options.ring_pages + p, i * options.ring_pages + p);
            }
            void* memory = xen->page(i * options.ring_pages);
            guest::FrontRing::initialise(memory);
            fronts.push_back(
                std::move(guest::FrontRing::attach(memory, options.ring_pages, options.protocol))
                    .value());
            ports.push_back(xen->alloc_port());
        }
    }

    RigOptions options;
    std::shared_ptr<FakeXen> xen;
    std::vector<std::unique_ptr<engine::Reactor>> reactors;
    std::vector<engine::Reactor*> lent;  // besides its own; outlive it
    std::shared_ptr<engine::Vbd> vbd;
    std::vector<guest::FrontRing> fronts;
    std::vector<Port> ports;
    uint64_t next_id = 0xfedc'ba98'7654'3210ull;

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<engine::Event> events_;
};

}  // namespace vbd::test
