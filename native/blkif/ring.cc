// BackRing's rare paths: attaching, stopping, and going idle.
#include "blkif/ring.h"

namespace vbd::blkif {

Result<BackRing> BackRing::attach(void* memory, uint32_t pages, Protocol protocol) {
    if (!std::has_single_bit(pages) || pages > kMaxRingPages) {
        return Error{
            ErrorKind::kInvalidArgument, 0,
            "a ring of " + std::to_string(pages) + " pages: 1, 2, 4, 8 or 16 are possible"};
    }
    if (memory == nullptr || reinterpret_cast<uintptr_t>(memory) % 8 != 0) {
        return Error{ErrorKind::kInvalidArgument, 0, "the ring's memory is not 8-byte aligned"};
    }
    BackRing ring;
    ring.shared_ = static_cast<uint8_t*>(memory);
    ring.entries_ = blkif::entries(pages, protocol);
    ring.stride_ = slot_bytes(protocol);

    const uint32_t rsp_prod = shared::load_index(ring.shared_ + kRingRspProd);
    const uint32_t req_prod = shared::load_index(ring.shared_ + kRingReqProd);
    if (req_prod - rsp_prod > ring.entries_) {
        return Error{ErrorKind::kRing, 0,
                     "the frontend's request producer " + std::to_string(req_prod) + " is " +
                         std::to_string(req_prod - rsp_prod) + " ahead of response producer " +
                         std::to_string(rsp_prod) + " on a ring of " +
                         std::to_string(ring.entries_)};
    }
    ring.req_cons_ = rsp_prod;
    ring.req_prod_seen_ = rsp_prod;
    ring.rsp_prod_private_ = rsp_prod;
    ring.rsp_prod_published_ = rsp_prod;
    return ring;
}

Status BackRing::resume(uint32_t count) {
    const uint32_t produced = shared::load_index(shared_ + kRingReqProd) - rsp_prod_published_;
    if (count > entries_ || produced < count || produced > entries_) {
        return Error{ErrorKind::kRing, 0,
                     std::to_string(count) + " requests were taken, of " +
                         std::to_string(produced) + " on the ring"};
    }
    req_cons_ += count;
    req_prod_seen_ = req_cons_;
    return {};
}

bool BackRing::has_requests() const {
    return shared::load_index(shared_ + kRingReqProd) != rsp_prod_published_;
}

void BackRing::stop() {
    stopped_ = true;
    req_prod_seen_ = req_cons_;
}

bool BackRing::final_check() {
    if (stopped_) return false;
    if (shared::load_index(shared_ + kRingReqProd) != req_cons_) return true;
    shared::publish_index(shared_ + kRingReqEvent, req_cons_ + 1);
    return shared::load_index_after_publish(shared_ + kRingReqProd) != req_cons_;
}

}  // namespace vbd::blkif
