#include "block/disk_client.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <condition_variable>
#include <new>
#include <utility>

#include "base/clock.h"
#include "block/script_memory.h"

namespace vbd::block {

namespace {

constexpr uint64_t kStopNs = 2'000'000'000;

}  // namespace

Result<std::shared_ptr<DiskClient>> DiskClient::open(std::shared_ptr<Device> device, uint32_t slots,
                                                     std::function<void()> bell) {
    if (slots == 0 || slots > kScriptMaxSlots) {
        return Error{ErrorKind::kInvalidArgument, 0, "a client has 1 to 256 requests at a time"};
    }
    auto client = std::shared_ptr<DiskClient>(new DiskClient);
    client->device_ = std::move(device);
    client->bell_ = std::move(bell);
    client->entries_ = std::bit_ceil(slots);
    const ScriptLayout layout(sizeof(ClientIndices), client->entries_, client->entries_, slots);
    auto control = map_script_memory(layout.bytes, "mapping a client's rings");
    if (!control) return control.error();
    client->control_ = control.value();
    auto pool = map_script_memory(size_t{slots} * kScriptSlotBytes, "reserving a client's memory");
    if (!pool) return pool.error();
    client->pool_ = pool.value();
    auto* base = static_cast<uint8_t*>(client->control_.iov_base);
    client->indices_ = new (base) ClientIndices;
    client->submissions_ = reinterpret_cast<uint32_t*>(base + layout.submissions);
    client->answers_ = reinterpret_cast<ScriptAnswer*>(base + layout.answers);
    client->descriptors_ = reinterpret_cast<ScriptDescriptor*>(base + layout.descriptors);
    client->requests_ = std::vector<Request>(slots);
    client->batch_.reserve(slots);
    client->wake_fd_ = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!client->wake_fd_)
        return system_error(ErrorKind::kNoMemory, errno, "creating an eventfd");

    std::mutex mutex;
    std::condition_variable ready;
    bool done = false;
    Status status;
    Status running = client->thread_.start("vbd-client", [&, self = client.get()] {
        self->run([&](Status outcome) {
            const std::lock_guard lock(mutex);
            status = std::move(outcome);
            done = true;
            ready.notify_one();
        });
    });
    if (!running) return running.error();
    std::unique_lock lock(mutex);
    ready.wait(lock, [&] { return done; });
    if (!status) return status.error();
    return client;
}

DiskClient::~DiskClient() {
    stop();
    if (at_device_ > 0) return;  // the device may still write there
    if (control_.iov_base) ::munmap(control_.iov_base, control_.iov_len);
    if (pool_.iov_base) ::munmap(pool_.iov_base, pool_.iov_len);
}

void DiskClient::kick() {
    std::atomic<uint32_t>& armed = indices_->native_armed.value;
    if (armed.load() != 0 && armed.exchange(0) != 0) eventfd_write(wake_fd_.get(), 1);
}

void DiskClient::stop() {
    if (!thread_.joinable()) return;
    stopping_.store(true);
    eventfd_write(wake_fd_.get(), 1);
    thread_.join();
    // A script may keep this client's memory for long; the disk, and the lock on its file, end here.
    device_.reset();
}

Status DiskClient::set_up() {
    auto context = IoContext::create({});
    if (!context) return context.error();
    context_ = std::move(context).value();
    auto queue = device_->open_queue(*context_);
    if (!queue) return queue.error();
    queue_ = std::move(queue).value();
    return {};
}

void DiskClient::run(const std::function<void(Status)>& started) {
    Status status = set_up();
    const bool ok = static_cast<bool>(status);
    started(std::move(status));
    if (!ok) {
        queue_.reset();
        context_.reset();
        return;
    }
    uint64_t give_up_ns = UINT64_MAX;
    for (;;) {
        const bool stopping = stopping_.load();
        if (stopping && give_up_ns == UINT64_MAX) {
            give_up_ns = monotonic_ns() + kStopNs;
            // What a stage only delays is done now.
            queue_->hurry();
        }
        bool worked = !stopping && take();
        context_->submit();
        worked |= context_->poll() > 0;
        worked |= bring_back();
        ring();
        if (worked) continue;
        if (stopping && (quiet() || monotonic_ns() > give_up_ns)) break;
        sleep(give_up_ns);
    }
    if (quiet()) {
        queue_.reset();
        context_.reset();
        // Its owner closes it, and its locks go, whoever still holds our memory.
        device_.reset();
        return;
    }
    // What the device still has keeps its memory for ever.
    (void)queue_.release();
    (void)context_.release();
    (void)new std::vector<Request>(std::move(requests_));
    (void)new std::shared_ptr<Device>(device_);
}

/// Nothing is at the device, asked for or not.
bool DiskClient::quiet() const {
    return at_device_ == 0 && queue_->idle();
}

bool DiskClient::take() {
    const uint32_t end = indices_->submitted.value.load(std::memory_order_seq_cst);
    uint32_t at = indices_->taken.value.load(std::memory_order_relaxed);
    if (at == end) return false;
    batch_.clear();
    for (; at != end && batch_.size() < batch_.capacity(); at++) {
        const uint32_t slot = submissions_[at & (entries_ - 1)];
        if (slot < requests_.size() && !requests_[slot].busy) begin(slot);
    }
    indices_->taken.value.store(at, std::memory_order_release);
    if (!batch_.empty()) queue_->submit(batch_);
    return true;
}

void DiskClient::begin(uint32_t slot) {
    const ScriptDescriptor descriptor = descriptors_[slot];
    if (!valid(descriptor)) return answer(slot, EINVAL);
    Request& request = requests_[slot];
    const auto length = static_cast<uint64_t>(descriptor.length);
    request.busy = true;
    request.memory = {static_cast<uint8_t*>(pool_.iov_base) + size_t{slot} * kScriptSlotBytes,
                      length};
    request.io = {};
    request.io.op = static_cast<IoOp>(descriptor.op);
    request.io.fua = (descriptor.flags & kScriptFua) != 0;
    if (request.io.op == IoOp::kRead || request.io.op == IoOp::kWrite) {
        request.io.iov = &request.memory;
        request.io.iov_count = 1;
    }
    request.io.offset = static_cast<uint64_t>(descriptor.offset);
    request.io.length = length;
    request.io.tag = &request;
    at_device_++;
    batch_.push_back(&request.io);
}

bool DiskClient::valid(const ScriptDescriptor& descriptor) const {
    const Geometry& geometry = device_->geometry();
    const double size = static_cast<double>(device_->size_bytes());
    if (!(descriptor.offset >= 0 && descriptor.length >= 0 && descriptor.offset <= size &&
          descriptor.length <= size - descriptor.offset)) {
        return false;
    }
    const uint32_t sector = geometry.sector_size;
    if (static_cast<uint64_t>(descriptor.offset) % sector != 0 ||
        static_cast<uint64_t>(descriptor.length) % sector != 0) {
        return false;
    }
    switch (static_cast<IoOp>(descriptor.op)) {
        case IoOp::kFlush:
            return true;
        case IoOp::kRead:
            return descriptor.length > 0 && descriptor.length <= kScriptSlotBytes;
        case IoOp::kWrite:
            return !geometry.read_only && descriptor.length > 0 &&
                   descriptor.length <= kScriptSlotBytes;
        case IoOp::kDiscard:
            return !geometry.read_only && geometry.can_discard && descriptor.length > 0;
        case IoOp::kSecureDiscard:
            return false;
    }
    return false;
}

bool DiskClient::bring_back() {
    Io* io = queue_->reap();
    if (!io) return false;
    while (io) {
        Io* next = io->next;
        auto* request = static_cast<Request*>(io->tag);
        request->busy = false;
        at_device_--;
        answer(static_cast<uint32_t>(request - requests_.data()), io->error);
        io = next;
    }
    return true;
}

void DiskClient::ring() {
    if (!std::exchange(to_tell_, false) || stopping_.load()) return;
    std::atomic<uint32_t>& armed = indices_->script_armed.value;
    if (armed.load() != 0 && armed.exchange(0) != 0) bell_();
}

void DiskClient::answer(uint32_t slot, int32_t error) {
    std::atomic<uint32_t>& end = indices_->answered.value;
    const uint32_t at = end.load(std::memory_order_relaxed);
    answers_[at & (entries_ - 1)] = {slot, static_cast<uint32_t>(error)};
    end.store(at + 1, std::memory_order_seq_cst);
    to_tell_ = true;
}

void DiskClient::sleep(uint64_t give_up_ns) {
    std::atomic<uint32_t>& armed = indices_->native_armed.value;
    armed.store(1);
    const bool nothing = indices_->submitted.value.load() == indices_->taken.value.load();
    // stop() comes through the descriptor, whether or not this is armed.
    if ((nothing || stopping_.load()) && context_->arm()) {
        pollfd fds[] = {{wake_fd_.get(), POLLIN, 0}, {context_->wake_fd(), POLLIN, 0}};
        const uint64_t now_ns = monotonic_ns();
        const uint64_t due_ns = std::min(context_->next_due_ns(), give_up_ns);
        const uint64_t wait_ns = due_ns > now_ns ? due_ns - now_ns : 0;
        const timespec timeout{static_cast<time_t>(wait_ns / 1'000'000'000),
                               static_cast<long>(wait_ns % 1'000'000'000)};
        ::ppoll(fds, 2, due_ns == Timer::kNever ? nullptr : &timeout, nullptr);
    }
    armed.store(0);
    eventfd_t ignored;
    eventfd_read(wake_fd_.get(), &ignored);
}

}  // namespace vbd::block
