// A program for a back ring and a hostile frontend, read from bytes, and a model that says what
// must happen. Used with libFuzzer's bytes by request_fuzz.cc and with random ones by ring_test.cc.
// A difference aborts.
//
// The model is written apart from the ring: free-running indices are 64-bit numbers that never
// wrap, and whether to notify is found by walking over the published responses.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "blkif/request.h"
#include "blkif/ring.h"

namespace vbd::test {

/// Bytes of a program; zeroes behind its end.
class Script {
  public:
    Script(const uint8_t* data, size_t size) : data_(data), size_(size) {}
    bool done() const { return at_ >= size_; }
    uint8_t byte() { return done() ? uint8_t{0} : data_[at_++]; }
    template <typename T>
    T take() {
        T value = 0;
        for (size_t i = 0; i < sizeof(T); ++i) value = T(value | T(T(byte()) << (8 * i)));
        return value;
    }

  private:
    const uint8_t* data_;
    size_t size_;
    size_t at_ = 0;
};

class RingModel {
  public:
    RingModel(const uint8_t* data, size_t size) : script_(data, size) {
        static constexpr blkif::Protocol kProtocols[] = {
            blkif::Protocol::kNative, blkif::Protocol::kX86_32, blkif::Protocol::kX86_64};
        protocol_ = kProtocols[script_.byte() % 3];
        pages_ = 1U << script_.byte() % 5;
        bytes_ = size_t{pages_} * kPageSize;
        memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kPageSize, bytes_)));
        std::memset(memory_.get(), script_.byte(), bytes_);
        stride_ = protocol_ == blkif::Protocol::kX86_32 ? 108 : 112;
        nr_ents_ = 32 * pages_;
        limits_ = take_limits();
        consumed_ = answered_ = published_ = script_.take<uint32_t>();
        set_index(0, uint32_t(consumed_));
        set_index(8, uint32_t(consumed_));
        Result<blkif::BackRing> ring = blkif::BackRing::attach(memory_.get(), pages_, protocol_);
        VBD_CHECK(ring);
        ring_ = ring.value();
        VBD_CHECK(ring_.entries() == nr_ents_);
    }

    /// Runs to the script's end, then answers what is in flight.
    void run() {
        while (!script_.done()) act();
        while (!in_flight_.empty()) respond();
        push();
        VBD_CHECK(ring_.in_flight() == 0);
        VBD_CHECK(!ring_.has_unpublished());
        VBD_CHECK(answered_ == consumed_);
    }

    uint64_t requests_consumed() const { return delivered_; }
    uint64_t requests_accepted() const { return accepted_; }
    bool ring_stopped() const { return stopped_; }

  private:
    struct Consumed {
        uint64_t id;
        uint8_t operation;
    };
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };

    blkif::Limits take_limits() {
        blkif::Limits limits;
        const uint8_t flags = script_.byte();
        limits.capacity_sectors = script_.take<uint64_t>() >> script_.byte() % 64;
        limits.sector_size = 512U << flags % 4;
        limits.max_indirect_segments = script_.take<uint16_t>();
        limits.read_only = (flags & 4) != 0;
        limits.flush = (flags & 8) != 0;
        limits.barrier = (flags & 16) != 0;
        limits.discard = (flags & 32) != 0;
        limits.secure_discard = (flags & 64) != 0;
        return limits;
    }

    void act() {
        switch (script_.byte() % 12) {
            case 0:
            case 1:
                write_request();
                break;
            case 2:  // a good frontend's step
                if (consumed_ - answered_ < nr_ents_) {
                    const uint64_t free = nr_ents_ - (consumed_ - answered_);
                    const uint64_t most =
                        script_.byte() % 16 == 0 ? free : std::min<uint64_t>(free, 4);
                    set_index(0, uint32_t(consumed_ + 1 + script_.byte() % most));
                }
                break;
            case 3:  // any other, rarely: the ring is stopped after it
                if (script_.byte() % 32 == 0) set_index(0, script_.take<uint32_t>());
                break;
            case 4:
                set_index(12, uint32_t(published_ + script_.byte()) - 4);
                break;
            case 5:
                memory_.get()[8 + script_.take<uint16_t>() % (bytes_ - 8)] = script_.byte();
                break;
            case 6:
                push();
                break;
            case 7:
                final_check();
                break;
            case 8:
                respond();
                break;
            default:
                pass();
        }
    }

    /// A plausible request at one of the next slots.
    void write_request() {
        uint8_t* slot = slot_at(consumed_ + script_.byte() % 4);
        slot[0] = script_.byte() % 8;
        for (size_t at = 1; at < 24; ++at) slot[at] = script_.byte();
        if (slot[0] != 6) slot[1] = slot[1] % 16;
        const size_t body = protocol_ == blkif::Protocol::kX86_32 ? 20 : 24;
        // Three of four start low on the disk and aligned; seven of eight segments are whole pages.
        if (script_.byte() % 4 != 0) {
            std::memset(slot + body - 7, 0, 7);
            slot[body - 8] &= 0xf8;
        }
        if (slot[0] == 5) std::memset(slot + body + 2, 0, 6);
        for (size_t i = 0; i < 11 && slot[0] < 4; ++i) {
            const uint8_t odd = script_.byte();
            slot[body + i * 8 + 4] = odd < 32 ? script_.byte() % 9 : uint8_t{0};
            slot[body + i * 8 + 5] = odd < 32 ? script_.byte() % 9 : uint8_t{7};
        }
    }

    void pass() {
        const uint32_t ahead = index(0) - uint32_t(consumed_);
        const bool legal = !stopped_ && ahead <= nr_ents_ - (consumed_ - answered_);
        VBD_CHECK(ring_.begin_pass() == legal);
        stopped_ = !legal;
        VBD_CHECK(ring_.stopped() == stopped_);
        const uint32_t expected = legal ? ahead : 0;
        VBD_CHECK(ring_.available() == expected);
        uint32_t budget = 1 + script_.byte();
        uint32_t left = expected;
        while (budget-- > 0 && ring_.next(slot_)) {
            VBD_CHECK(left-- > 0);
            consume();
            VBD_CHECK(ring_.available() == left);
        }
        VBD_CHECK(ring_.in_flight() == consumed_ - answered_);
        VBD_CHECK(ring_.in_flight() <= nr_ents_);
    }

    void consume() {
        const uint8_t* shared = slot_at(consumed_++);
        ++delivered_;
        const uint8_t operation = shared[0];
        const size_t body = protocol_ == blkif::Protocol::kX86_32 ? 20 : 24;
        size_t used = body;
        if (operation < 4 && shared[1] <= 11) used += shared[1] * size_t{8};
        if (operation == 5) used += 8;
        if (operation == 6) used += 4 + 32;
        VBD_CHECK(std::memcmp(slot_.bytes, shared, used) == 0);
        // Whatever the guest does to the slot now, the copy has decided.
        uint64_t id;
        std::memcpy(&id, shared + body - 16, sizeof id);
        const blkif::Reject reject = blkif::parse(protocol_, slot_, limits_, request_);
        VBD_CHECK(request_.id == id);
        VBD_CHECK(request_.wire_operation == (operation == 6 ? shared[1] : operation));
        in_flight_.push_back({request_.id, request_.wire_operation});
        if (reject == blkif::Reject::kNone) check_accepted();
    }

    void check_accepted() {
        ++accepted_;
        if (request_.indirect) {
            VBD_CHECK(request_.nr_segments >= 1);
            VBD_CHECK(request_.nr_segments <= limits_.max_indirect_segments);
            VBD_CHECK(request_.indirect_pages() <= blkif::kMaxIndirectPages);
            segments_.resize(request_.nr_segments);
            for (blkif::Segment& segment : segments_) {
                segment = {script_.byte(), uint8_t(script_.byte() % 8), 7, 0};
                if (script_.byte() == 255) segment.last_sector = script_.byte();
            }
            if (check_segments(segments_, limits_, request_) != blkif::Reject::kNone) return;
        } else {
            VBD_CHECK(request_.nr_segments <= blkif::kMaxSegments);
            segments_.assign(request_.segments, request_.segments + request_.nr_segments);
        }
        check_executable();
    }

    /// What everything behind the boundary relies on.
    void check_executable() {
        uint64_t sum = 0;
        for (const blkif::Segment& segment : segments_) {
            VBD_CHECK(segment.first_sector <= segment.last_sector && segment.last_sector < 8);
            VBD_CHECK(segment.first_sector * 512 % limits_.sector_size == 0);
            VBD_CHECK((segment.last_sector + 1) * 512 % limits_.sector_size == 0);
            sum += segment.last_sector - segment.first_sector + 1U;
        }
        const bool discard = request_.operation == blkif::Operation::kDiscard;
        VBD_CHECK(discard || request_.nr_sectors == sum);
        VBD_CHECK(request_.sector % (limits_.sector_size / 512) == 0);
        VBD_CHECK(request_.nr_sectors % (limits_.sector_size / 512) == 0);
        if (request_.nr_sectors != 0) {
            VBD_CHECK(request_.sector < limits_.capacity_sectors);
            VBD_CHECK(request_.nr_sectors <= limits_.capacity_sectors);
            VBD_CHECK(request_.sector <= limits_.capacity_sectors - request_.nr_sectors);
        }
        const bool reads = request_.operation == blkif::Operation::kRead;
        const bool flushes = request_.operation == blkif::Operation::kFlush;
        VBD_CHECK(!limits_.read_only || reads || (flushes && request_.nr_segments == 0));
        VBD_CHECK(limits_.discard || !discard);
        VBD_CHECK(limits_.secure_discard || !request_.secure);
        VBD_CHECK(limits_.flush || !flushes);
        VBD_CHECK(limits_.barrier || request_.operation != blkif::Operation::kWriteBarrier);
        VBD_CHECK(request_.nr_segments != 0 || !reads);
    }

    /// Answers any of the requests in flight.
    void respond() {
        if (in_flight_.empty()) return;
        const size_t which = script_.take<uint16_t>() % in_flight_.size();
        const Consumed request = in_flight_[which];
        in_flight_.erase(in_flight_.begin() + std::ptrdiff_t(which));
        const auto status = script_.take<int16_t>();

        uint8_t* slot = slot_at(answered_++);
        std::vector<uint8_t> expected(slot, slot + stride_);
        std::memset(expected.data(), 0, stride_ == 108 ? 12 : 16);
        std::memcpy(expected.data(), &request.id, 8);
        expected[8] = request.operation;
        std::memcpy(expected.data() + 10, &status, 2);
        ring_.respond(request.id, request.operation, status);
        VBD_CHECK(std::memcmp(slot, expected.data(), stride_) == 0);
        VBD_CHECK(ring_.has_unpublished());
    }

    void push() {
        bool wanted = false;
        const uint32_t rsp_event = index(12);
        for (uint64_t at = published_ + 1; at <= answered_; ++at)
            wanted |= uint32_t(at) == rsp_event;
        const uint32_t before = index(8);
        VBD_CHECK(ring_.push() == wanted);
        // Without new responses nothing is written, not even over what the guest scribbled there.
        VBD_CHECK(index(8) == (published_ == answered_ ? before : uint32_t(answered_)));
        published_ = answered_;
    }

    void final_check() {
        const bool work = index(0) != uint32_t(consumed_);
        const uint32_t before = index(4);
        VBD_CHECK(ring_.final_check() == (work && !stopped_));
        VBD_CHECK(index(4) == (work || stopped_ ? before : uint32_t(consumed_) + 1));
    }

    uint8_t* slot_at(uint64_t position) {
        return memory_.get() + 64 + position % nr_ents_ * stride_;
    }
    uint32_t index(size_t offset) const {
        uint32_t value;
        std::memcpy(&value, memory_.get() + offset, sizeof value);
        return value;
    }
    void set_index(size_t offset, uint32_t value) {
        std::memcpy(memory_.get() + offset, &value, sizeof value);
    }

    Script script_;
    blkif::Protocol protocol_ = blkif::Protocol::kNative;
    uint32_t pages_ = 0;
    size_t bytes_ = 0;
    std::unique_ptr<uint8_t, Free> memory_;
    size_t stride_ = 0;
    uint32_t nr_ents_ = 0;
    blkif::Limits limits_;
    blkif::BackRing ring_;
    blkif::RawSlot slot_;
    blkif::Request request_;
    std::vector<blkif::Segment> segments_;
    std::vector<Consumed> in_flight_;
    uint64_t consumed_ = 0;
    uint64_t answered_ = 0;
    uint64_t published_ = 0;
    uint64_t delivered_ = 0;
    uint64_t accepted_ = 0;
    bool stopped_ = false;
};

}  // namespace vbd::test
