// A small vhost-user-blk frontend with a closed-loop load: what a peer's backend is measured with,
// as guest/load.h measures ours. One queue, split ring, EVENT_IDX where the server has it.
//
//   set up    the messages of docs/interop/vhost-user.rst (QEMU), memory and eventfds by SCM_RIGHTS
//   run       keep `depth` requests in flight; spin for used entries, or sleep on the call eventfd
//
// Trusts the server: it is for measuring, not for guests.
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <vector>

#include "base/fd.h"
#include "bench/benchmark.h"

namespace vbd::bench {

namespace {

// The split virtqueue of VIRTIO 1.2, 2.7; linux/virtio_ring.h has it too, but is no C++.
struct Descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};
struct Available {
    uint16_t flags, index;
    uint16_t ring[1];  // as many as there are descriptors, then used_event
};
struct UsedElement {
    uint32_t id, length;
};
struct Used {
    uint16_t flags, index;
    UsedElement ring[1];  // as many as there are descriptors, then avail_event
};
constexpr uint16_t kNext = 1;
constexpr uint16_t kDeviceWrites = 2;
constexpr uint16_t kNoNotify = 1;
constexpr uint16_t kNoInterrupt = 1;

enum : uint32_t {
    kGetFeatures = 1,
    kSetFeatures = 2,
    kSetOwner = 3,
    kSetMemTable = 5,
    kSetVringNum = 8,
    kSetVringAddr = 9,
    kSetVringBase = 10,
    kSetVringKick = 12,
    kSetVringCall = 13,
    kGetProtocolFeatures = 15,
    kSetProtocolFeatures = 16,
    kSetVringEnable = 18,
    kGetConfig = 24,
};

constexpr uint64_t kEventIdx = 1ull << 29;          // VIRTIO_F_EVENT_IDX
constexpr uint64_t kProtocolFeatures = 1ull << 30;  // VHOST_USER_F_PROTOCOL_FEATURES
constexpr uint64_t kVersion1 = 1ull << 32;
constexpr uint64_t kConfigFeature = 1ull << 9;  // VHOST_USER_PROTOCOL_F_CONFIG
constexpr uint32_t kConfigBytes = 60;

#pragma pack(push, 1)
struct Message {
    uint32_t request = 0;
    uint32_t flags = 0;
    uint32_t size = 0;
    union {
        uint64_t value = 0;
        struct {
            uint32_t index, number;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t descriptors, used, available, log;
        } addresses;
        struct {
            uint32_t count, padding;
            uint64_t guest_address, size, user_address, offset;
        } memory;
        struct {
            uint32_t offset, size, flags;
            uint8_t bytes[256];
        } config;
    };
};
#pragma pack(pop)
constexpr size_t kHeaderBytes = 12;

// Where things lie in the shared memory.
constexpr size_t kMemoryBytes = 64 << 20;
constexpr size_t kAvailableAt = 1 << 16;
constexpr size_t kUsedAt = 2 << 16;
constexpr size_t kHeadersAt = 3 << 16;
constexpr size_t kStatusAt = 4 << 16;
constexpr size_t kDataAt = 2 << 20;
constexpr uint32_t kStatusStride = 64;
constexpr uint32_t kDescriptorsPerRequest = 3;
constexpr uint64_t kStuckNs = 5'000'000'000;

class VhostUser final : public Benchmark {
  public:
    struct Options {
        std::string socket;
        uint32_t depth = 32;
        uint32_t block = 4096;
        bool poll = true;
        bool write = false;
        bool sequential = false;
    };

    explicit VhostUser(Options options) : options_(std::move(options)) {}
    ~VhostUser() override {
        if (memory_) ::munmap(memory_, kMemoryBytes);
    }

    Status set_up();
    Status run(uint64_t duration_ns, Sample& sample) override;

  private:
    template <typename T>
    T* at(size_t offset) const {
        return reinterpret_cast<T*>(memory_ + offset);
    }
    bool send(uint32_t request, Message& message, uint32_t size, int fd = -1);
    bool ask(uint32_t request, Message& message, uint32_t size);
    Status connect();
    bool negotiate();
    bool share_memory();
    bool set_ring();
    void write_descriptors();

    void submit(uint64_t now_ns);
    bool reap(uint64_t now_ns, Sample& sample);
    Status rest(uint64_t deadline_ns);

    const Options options_;
    Fd socket_;
    Fd memory_fd_;
    Fd kick_;
    Fd call_;
    uint8_t* memory_ = nullptr;
    uint32_t entries_ = 256;
    uint64_t features_ = 0;
    uint64_t blocks_ = 0;
    uint16_t available_ = 0;
    uint16_t used_ = 0;
    uint64_t position_ = 0;
    uint64_t spins_ = 0;
    Random random_{1};
    std::vector<uint32_t> free_;
    std::vector<uint64_t> started_ns_;
};

bool VhostUser::send(uint32_t request, Message& message, uint32_t size, int fd) {
    message.request = request;
    message.flags = 1;  // version 1
    message.size = size;
    iovec bytes{&message, kHeaderBytes + size};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    msghdr header{};
    header.msg_iov = &bytes;
    header.msg_iovlen = 1;
    if (fd >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        cmsghdr* rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof fd);
        std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    return ::sendmsg(socket_.get(), &header, MSG_NOSIGNAL) ==
           static_cast<ssize_t>(kHeaderBytes + size);
}

bool VhostUser::ask(uint32_t request, Message& message, uint32_t size) {
    if (!send(request, message, size)) return false;
    if (::recv(socket_.get(), &message, kHeaderBytes, MSG_WAITALL) != kHeaderBytes) return false;
    if (message.size > sizeof message - kHeaderBytes) return false;
    if (message.size == 0) return true;
    return ::recv(socket_.get(), &message.value, message.size, MSG_WAITALL) ==
           static_cast<ssize_t>(message.size);
}

Status VhostUser::connect() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (options_.socket.size() >= sizeof address.sun_path) {
        return Error{ErrorKind::kInvalidArgument, 0, "the socket's path is too long"};
    }
    std::memcpy(address.sun_path, options_.socket.data(), options_.socket.size());
    socket_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (socket_ &&
        ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
        return {};
    }
    return system_error(ErrorKind::kBacking, errno, "connecting to " + options_.socket);
}

bool VhostUser::negotiate() {
    Message message;
    if (!ask(kGetFeatures, message, 0)) return false;
    const uint64_t offered = message.value;
    if (!send(kSetOwner, message, 0)) return false;
    uint64_t capacity_sectors = 0;
    if (offered & kProtocolFeatures) {
        if (!ask(kGetProtocolFeatures, message, 0)) return false;
        const uint64_t wanted = message.value & kConfigFeature;
        message.value = wanted;
        if (!send(kSetProtocolFeatures, message, 8)) return false;
        if (wanted != 0) {
            message = Message();
            message.config.size = kConfigBytes;
            if (!ask(kGetConfig, message, 12 + kConfigBytes)) return false;
            std::memcpy(&capacity_sectors, message.config.bytes, sizeof capacity_sectors);
        }
    }
    blocks_ = capacity_sectors / (options_.block / 512);
    features_ = offered & (kEventIdx | kProtocolFeatures | kVersion1);
    message.value = features_;
    return blocks_ != 0 && send(kSetFeatures, message, 8);
}

bool VhostUser::share_memory() {
    memory_fd_ = Fd(::memfd_create("vbdkit-bench", MFD_CLOEXEC));
    if (!memory_fd_ || ::ftruncate(memory_fd_.get(), kMemoryBytes) != 0) return false;
    void* memory = ::mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                          memory_fd_.get(), 0);
    if (memory == MAP_FAILED) return false;
    memory_ = static_cast<uint8_t*>(memory);
    Message message;
    message.memory.count = 1;
    message.memory.padding = 0;
    message.memory.guest_address = 0;
    message.memory.size = kMemoryBytes;
    message.memory.user_address = reinterpret_cast<uintptr_t>(memory_);
    message.memory.offset = 0;
    return send(kSetMemTable, message, 40, memory_fd_.get());
}

bool VhostUser::set_ring() {
    while (entries_ < options_.depth * kDescriptorsPerRequest) entries_ *= 2;
    Message message;
    message.state = {0, entries_};
    if (!send(kSetVringNum, message, 8)) return false;
    message.state = {0, 0};
    if (!send(kSetVringBase, message, 8)) return false;
    const uintptr_t base = reinterpret_cast<uintptr_t>(memory_);
    message.addresses = {0, 0, base, base + kUsedAt, base + kAvailableAt, 0};
    if (!send(kSetVringAddr, message, 40)) return false;
    // Blocking, and never O_NONBLOCK of our own: the flag belongs to the open file that the server
    // shares.
    kick_ = Fd(::eventfd(0, EFD_CLOEXEC));
    call_ = Fd(::eventfd(0, EFD_CLOEXEC));
    message.value = 0;
    if (!send(kSetVringCall, message, 8, call_.get())) return false;
    message.value = 0;
    if (!send(kSetVringKick, message, 8, kick_.get())) return false;
    message.state = {0, 1};
    return !(features_ & kProtocolFeatures) || send(kSetVringEnable, message, 8);
}

void VhostUser::write_descriptors() {
    auto* descriptors = at<Descriptor>(0);
    for (uint32_t i = 0; i < options_.depth; i++) {
        const auto first = static_cast<uint16_t>(i * kDescriptorsPerRequest);
        const auto direction =
            static_cast<uint16_t>(options_.write ? 0 : kDeviceWrites);
        descriptors[first] = {kHeadersAt + i * sizeof(virtio_blk_outhdr), sizeof(virtio_blk_outhdr),
                              kNext, static_cast<uint16_t>(first + 1)};
        descriptors[first + 1] = {kDataAt + uint64_t{i} * options_.block, options_.block,
                                  static_cast<uint16_t>(direction | kNext),
                                  static_cast<uint16_t>(first + 2)};
        descriptors[first + 2] = {kStatusAt + uint64_t{i} * kStatusStride, 1, kDeviceWrites, 0};
        free_.push_back(i);
    }
    started_ns_.resize(options_.depth);
}

Status VhostUser::set_up() {
    if (Status connected = connect(); !connected) return connected;
    if (!negotiate() || !share_memory() || !set_ring()) {
        return Error{ErrorKind::kBacking, errno, options_.socket + " is no vhost-user-blk server"};
    }
    write_descriptors();
    return {};
}

void VhostUser::submit(uint64_t now_ns) {
    if (free_.empty()) return;
    auto* available = at<Available>(kAvailableAt);
    auto* headers = at<virtio_blk_outhdr>(kHeadersAt);
    const uint16_t before = available_;
    while (!free_.empty()) {
        const uint32_t i = free_.back();
        free_.pop_back();
        uint64_t block = random_.below(blocks_);
        if (options_.sequential) {
            block = position_;
            position_ = position_ + 1 == blocks_ ? 0 : position_ + 1;
        }
        headers[i].type = options_.write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
        headers[i].ioprio = 0;
        headers[i].sector = block * (options_.block / 512);
        memory_[kStatusAt + size_t{i} * kStatusStride] = 0xff;
        started_ns_[i] = now_ns;
        available->ring[available_++ & (entries_ - 1)] =
            static_cast<uint16_t>(i * kDescriptorsPerRequest);
    }
    __atomic_store_n(&available->index, available_, __ATOMIC_SEQ_CST);
    const auto* used = at<Used>(kUsedAt);
    bool wanted = !(__atomic_load_n(&used->flags, __ATOMIC_SEQ_CST) & kNoNotify);
    if (features_ & kEventIdx) {
        const auto* event = reinterpret_cast<const uint16_t*>(&used->ring[entries_]);
        const uint16_t threshold = __atomic_load_n(event, __ATOMIC_SEQ_CST);
        wanted = static_cast<uint16_t>(available_ - threshold - 1) <
                 static_cast<uint16_t>(available_ - before);
    }
    const uint64_t one = 1;
    if (wanted) VBD_CHECK(::write(kick_.get(), &one, sizeof one) == sizeof one);
}

bool VhostUser::reap(uint64_t now_ns, Sample& sample) {
    const auto* used = at<Used>(kUsedAt);
    const uint16_t end = __atomic_load_n(&used->index, __ATOMIC_ACQUIRE);
    if (end == used_) return false;
    while (used_ != end) {
        const uint32_t i = used->ring[used_++ & (entries_ - 1)].id / kDescriptorsPerRequest;
        VBD_CHECK(i < options_.depth);
        sample.errors += memory_[kStatusAt + size_t{i} * kStatusStride] != VIRTIO_BLK_S_OK;
        sample.operations++;
        sample.latency_ns.record(now_ns - started_ns_[i]);
        free_.push_back(i);
    }
    return true;
}

/// Nothing was answered: spins a little, or asks for a call and sleeps.
Status VhostUser::rest(uint64_t deadline_ns) {
    auto* event = reinterpret_cast<uint16_t*>(&at<Available>(kAvailableAt)->ring[entries_]);
    if (options_.poll) {
        // Far ahead of what is used: no calls.
        if (features_ & kEventIdx) {
            __atomic_store_n(event, static_cast<uint16_t>(used_ + 0x7fff), __ATOMIC_RELAXED);
        } else {
            __atomic_store_n(&at<Available>(kAvailableAt)->flags, kNoInterrupt,
                             __ATOMIC_RELAXED);
        }
        relax();
        if (++spins_ % 65536 != 0 || monotonic_ns() < deadline_ns + kStuckNs) return {};
        return Error{ErrorKind::kBacking, ETIMEDOUT, "the server does not answer"};
    }
    if (features_ & kEventIdx) __atomic_store_n(event, used_, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&at<Used>(kUsedAt)->index, __ATOMIC_SEQ_CST) != used_) return {};
    pollfd calls{call_.get(), POLLIN, 0};
    if (::poll(&calls, 1, static_cast<int>(kStuckNs / 1'000'000)) <= 0) {
        return Error{ErrorKind::kBacking, ETIMEDOUT, "the server does not answer"};
    }
    uint64_t count = 0;
    (void)!::read(call_.get(), &count, sizeof count);
    return {};
}

Status VhostUser::run(uint64_t duration_ns, Sample& sample) {
    const uint64_t cpu_before_ns = thread_cpu_ns();
    const uint64_t start_ns = monotonic_ns();
    const uint64_t deadline_ns = start_ns + duration_ns;
    uint64_t now_ns = start_ns;
    while (now_ns < deadline_ns || free_.size() < options_.depth) {
        if (now_ns < deadline_ns) submit(now_ns);
        while (__atomic_load_n(&at<Used>(kUsedAt)->index, __ATOMIC_ACQUIRE) == used_) {
            if (Status rested = rest(deadline_ns); !rested) return rested;
        }
        now_ns = monotonic_ns();
        reap(now_ns, sample);
    }
    sample.elapsed_ns = now_ns - start_ns;
    sample.cpu_ns = thread_cpu_ns() - cpu_before_ns;
    return {};
}

}  // namespace

Made make_vhost_user(Arguments& arguments) {
    VhostUser::Options options;
    options.socket = arguments.text("socket", "");
    options.depth = static_cast<uint32_t>(arguments.number("depth", 32));
    options.block = static_cast<uint32_t>(arguments.number("block", 4096));
    options.poll = arguments.number("poll", 1) != 0;
    options.write = arguments.number("write", 0) != 0;
    options.sequential = arguments.number("sequential", 0) != 0;
    const bool fits = options.depth >= 1 && options.depth <= 256 && options.block >= 512 &&
                      uint64_t{options.depth} * options.block <= kMemoryBytes - kDataAt;
    if (!fits) {
        return Error{ErrorKind::kInvalidArgument, 0, "depth= is 1 to 256, depth * block= 62 MiB"};
    }
    if (Status pinned = pin_to(static_cast<int>(arguments.number("cpu", 0))); !pinned) {
        return pinned.error();
    }
    auto client = std::make_unique<VhostUser>(options);
    if (Status ready = client->set_up(); !ready) return ready.error();
    return std::unique_ptr<Benchmark>(std::move(client));
}

}  // namespace vbd::bench
