// Queue, WRITE_BARRIER: everything taken earlier by any ring of the vbd completes, then flush,
// write, flush; nothing taken later by any ring starts before that. Linux's blkback orders a
// barrier within its own ring only.
#include "engine/mailbox.h"
#include "engine/queue.h"

namespace vbd::engine {

void VbdShared::kick_others(uint32_t self) {
    for (uint32_t i = 0; i < slots.size(); i++) {
        if (i == self) continue;
        slots[i]->kicked.store(true, std::memory_order_release);
        slots[i]->mailbox->wake();
    }
}

bool Queue::gate_closed() const {
    if (!several_rings_) return false;
    Queue* owner = shared_->barrier_owner.load();
    return owner != nullptr && owner != this;
}

// Announces that this ring may start requests, unless another ring's barrier is under way.
// Sequentially consistent on both sides: either we see the gate, or the barrier sees us busy.
bool Queue::may_consume() {
    if (!several_rings_) return true;
    set_busy(true);
    if (!gate_closed()) return true;
    if (at_device_ == 0) set_busy(false);
    return false;
}

void Queue::set_busy(bool busy) {
    if (busy_ == busy || !several_rings_) return;
    busy_ = busy;
    slot().busy.store(busy);
    if (!busy && gate_closed()) shared_->kick_others(options_.index);
}

bool Queue::others_quiet() const {
    for (uint32_t i = 0; i < shared_->slots.size(); i++) {
        if (i != options_.index && shared_->slots[i]->busy.load()) return false;
    }
    return true;
}

bool Queue::run_barrier(uint64_t now_ns) {
    if (barrier_running_) return false;
    if (flush_failed()) [[unlikely]] {
        release_barrier();  // never begun, and never answered
        return true;
    }
    if (several_rings_) {
        Queue* nobody = nullptr;
        Queue* owner = shared_->barrier_owner.load();
        if (owner != this && !shared_->barrier_owner.compare_exchange_strong(nobody, this))
            return false;
    }
    if (at_device_ > 0 || (several_rings_ && !others_quiet())) return false;
    batch_.clear();
    pass_pages_ = 0;
    if (!admit(barrier_)) return false;
    barrier_running_ = true;
    batch_.push_back(barrier_);
    start_batch(1, limits(), now_ns);
    return true;
}

void Queue::release_barrier() {
    barrier_ = nullptr;
    barrier_running_ = false;
    if (!several_rings_) return;
    Queue* self = this;
    if (shared_->barrier_owner.compare_exchange_strong(self, nullptr))
        shared_->kick_others(options_.index);
}

}  // namespace vbd::engine
