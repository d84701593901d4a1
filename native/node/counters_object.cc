// Counters: sums over rings.
#include "node/counters_object.h"

#include "node/convert.h"

namespace vbd::node {

namespace {

using engine::OperationCounters;
using engine::QueueCounters;

class Summary {
  public:
    Summary(Napi::Env env, engine::Vbd& vbd)
        : env_(env), vbd_(vbd), object_(Napi::Object::New(env)) {}

    template <typename Read>
    uint64_t sum(Read read) const {
        uint64_t total = 0;
        for (auto& ring : vbd_.counters()) total += read(*ring);
        return total;
    }

    void number(const char* name, uint64_t value) {
        object_.Set(name, Napi::Number::New(env_, static_cast<double>(value)));
    }

    void counter(const char* name, Counter QueueCounters::*field) {
        number(name, sum([&](const QueueCounters& ring) { return (ring.*field).get(); }));
    }
    void counter(const char* name, Counter memory::TransferCounters::*field) {
        number(name, sum([&](const QueueCounters& ring) { return (ring.transfer.*field).get(); }));
    }

    void histogram(Napi::Object into, const char* name, auto read) {
        Histogram merged;
        for (auto& ring : vbd_.counters()) merged.merge(read(*ring));
        into.Set(name, histogram_object(env_, merged));
    }

    void operation(const char* name, OperationCounters QueueCounters::*field) {
        Napi::Object object = Napi::Object::New(env_);
        auto total = [&](Counter OperationCounters::*part) {
            return static_cast<double>(
                sum([&](const QueueCounters& ring) { return (ring.*field.*part).get(); }));
        };
        object.Set("requests", total(&OperationCounters::requests));
        object.Set("sectors", total(&OperationCounters::sectors));
        object.Set("bytes", total(&OperationCounters::sectors) * kSectorSize);
        object.Set("errors", total(&OperationCounters::errors));
        histogram(object, "latencyNs", [&](const QueueCounters& ring) -> const Histogram& {
            return (ring.*field).latency_ns;
        });
        object_.Set(name, object);
    }

    void rejections() {
        Napi::Object object = Napi::Object::New(env_);
        for (uint32_t kind = 1; kind < blkif::kRejectKinds; kind++) {
            uint64_t count =
                sum([&](const QueueCounters& ring) { return ring.rejected[kind].get(); });
            object.Set(blkif::name_of(static_cast<blkif::Reject>(kind)),
                       static_cast<double>(count));
        }
        object_.Set("rejected", object);
    }

    Napi::Object object() const { return object_; }

  private:
    Napi::Env env_;
    engine::Vbd& vbd_;
    Napi::Object object_;
};

}  // namespace

Napi::Object counters_object(Napi::Env env, engine::Vbd& vbd, const PoolPages& pool) {
    using memory::TransferCounters;
    Summary summary(env, vbd);
    summary.operation("read", &QueueCounters::read);
    summary.operation("write", &QueueCounters::write);
    summary.operation("flush", &QueueCounters::flush);
    summary.operation("discard", &QueueCounters::discard);
    summary.rejections();
    summary.counter("grantErrors", &TransferCounters::grant_errors);
    summary.counter("diskErrors", &QueueCounters::disk_errors);
    summary.counter("outOfRequests", &QueueCounters::out_of_requests);
    summary.number("inFlight",
                   summary.sum([](const QueueCounters& ring) { return ring.in_flight.get(); }));
    summary.number("persistentGrants", summary.sum([](const QueueCounters& ring) {
        return ring.transfer.persistent.get();
    }));
    summary.number("persistentGrantsCap", uint64_t{vbd.tunables().max_persistent_grants} *
                                              std::max<size_t>(1, vbd.counters().size()));
    summary.counter("persistentGrantsOverflow", &TransferCounters::overflow);
    summary.counter("persistentGrantsPurged", &TransferCounters::purged);
    summary.counter("grantMaps", &TransferCounters::maps);
    summary.counter("grantUnmaps", &TransferCounters::unmaps);
    summary.counter("grantCopies", &TransferCounters::copies);
    summary.counter("grantCalls", &TransferCounters::calls);
    summary.counter("notificationsSent", &QueueCounters::notifications_sent);
    summary.counter("notificationsSaved", &QueueCounters::notifications_saved);
    summary.counter("eventsReceived", &QueueCounters::events);
    summary.counter("spuriousEvents", &QueueCounters::spurious_events);
    summary.counter("wakeups", &QueueCounters::wakeups);
    summary.number("poolPagesInUse", pool.in_use);
    summary.number("poolPagesFree", pool.free);
    Napi::Object object = summary.object();
    summary.histogram(object, "ringUtilisation", [](const QueueCounters& ring) -> const Histogram& {
        return ring.ring_utilisation;
    });
    summary.histogram(
        object, "segmentsPerRequest",
        [](const QueueCounters& ring) -> const Histogram& { return ring.segments_per_request; });
    return object;
}

}  // namespace vbd::node
