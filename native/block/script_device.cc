#include "block/script_device.h"

#include <algorithm>
#include <cstring>

#include "block/racy_bytes.h"

namespace vbd::block {

namespace {

bool moves_data(const Io& io) {
    return io.op == IoOp::kRead || io.op == IoOp::kWrite;
}

uint64_t piece_bytes(const Io& io) {
    const uint64_t left = io.length - io.done;
    return moves_data(io) ? std::min<uint64_t>(left, kScriptSlotBytes) : left;
}

/// Calls `copy(guest bytes, offset in the piece, length)` for each part of the Io's present piece.
template <typename Copy>
void each_part(const Io& io, Copy copy) {
    uint64_t skip = io.done;
    uint64_t at = 0;
    const uint64_t length = piece_bytes(io);
    for (uint32_t i = 0; i < io.iov_count && at < length; i++) {
        const iovec& part = io.iov[i];
        if (skip >= part.iov_len) {
            skip -= part.iov_len;
            continue;
        }
        const uint64_t bytes = std::min<uint64_t>(part.iov_len - skip, length - at);
        copy(static_cast<uint8_t*>(part.iov_base) + skip, at, bytes);
        at += bytes;
        skip = 0;
    }
}

}  // namespace

Result<std::unique_ptr<Device>> ScriptDevice::create(const Geometry& geometry,
                                                     std::shared_ptr<ScriptChannel> channel) {
    if (Status s = check_disk_size(geometry.size_bytes, geometry.sector_size); !s) {
        return s.error();
    }
    auto device = std::unique_ptr<ScriptDevice>(new ScriptDevice);
    device->channel_ = std::move(channel);
    device->geometry_ = geometry;
    device->size_bytes_.store(geometry.size_bytes, std::memory_order_release);
    return std::unique_ptr<Device>(std::move(device));
}

Result<std::unique_ptr<DeviceQueue>> ScriptDevice::open_queue(IoContext& context) {
    return std::unique_ptr<DeviceQueue>(new ScriptQueue(context, *channel_));
}

Status ScriptDevice::resize(uint64_t size_bytes) {
    if (Status s = check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    geometry_.size_bytes = size_bytes;
    size_bytes_.store(size_bytes, std::memory_order_release);
    return {};
}

ScriptQueue::ScriptQueue(IoContext& context, ScriptChannel& channel)
    : ScriptClient(context, channel.client("")), channel_(channel) {
    done_with_.reserve(channel.slots());
    pieces_.reserve(channel.slots());
}

void ScriptQueue::identify(std::string_view client) {
    client_ = channel_.client(client);
}

void ScriptQueue::submit(std::span<Io* const> batch) {
    IoList ios;
    for (Io* io : batch) {
        if (io->op == IoOp::kSecureDiscard) {
            complete(io, EOPNOTSUPP);
            continue;
        }
        io->queue = this;
        io->done = 0;
        context_.note_started();
        ios.push(io);
    }
    IoList granted;
    channel_.admit(ios, granted);
    go(granted);
}

void ScriptQueue::resume_list(Io* list) {
    IoList granted;
    while (list) {
        Io* io = list;
        list = io->next;
        int32_t error = 0;
        if (!ScriptChannel::has_slot(*io)) {
            complete(io, io->error);
        } else if (channel_.is_answered(*io, error)) {
            take_answer(io, error);
            if (io->error != 0 || io->done == io->length) {
                done_with_.push_back(io);
            } else {
                context_.note_started();
                granted.push(io);
            }
        } else {
            context_.note_started();
            granted.push(io);
        }
    }
    go(granted);
}

void ScriptQueue::take_answer(Io* io, int32_t error) {
    io->error = error;
    if (error != 0) return;
    if (io->op == IoOp::kRead) {
        const uint8_t* memory = channel_.memory(*io);
        each_part(*io, [memory](uint8_t* guest, uint64_t at, uint64_t bytes) {
            racy_copy(guest, memory + at, bytes);
        });
    }
    io->done += piece_bytes(*io);
}

// `granted` may be of other queues of this reactor: they wait for the same slots.
void ScriptQueue::go(IoList& granted) {
    for (;;) {
        pieces_.clear();
        while (Io* io = granted.pop()) {
            if (ScriptChannel::has_slot(*io)) {
                prepare(io);
            } else {
                context_.note_finished();
                io->queue->complete(io, io->error);
            }
        }
        if (pieces_.empty() && done_with_.empty()) return;
        channel_.turn(done_with_, pieces_, context_, granted);
        for (Io* io : done_with_) complete(io, io->error);
        done_with_.clear();
    }
}

void ScriptQueue::prepare(Io* io) {
    uint8_t* memory = channel_.memory(*io);
    const uint64_t length = piece_bytes(*io);
    if (io->op == IoOp::kWrite) {
        each_part(*io, [memory](const uint8_t* guest, uint64_t at, uint64_t bytes) {
            racy_copy(memory + at, guest, bytes);
        });
    } else if (io->op == IoOp::kRead) {
        std::memset(memory, 0, length);
    }
    const uint32_t client = static_cast<ScriptClient*>(io->queue)->client();
    pieces_.push_back({io, io->offset + io->done, length, client});
}

}  // namespace vbd::block
