#include "node/trace_object.h"

#include <vector>

namespace vbd::node {

namespace {

constexpr size_t kMaxRecords = 65'536;
constexpr size_t kFields = 8;  // TRACE_FIELDS of lib/engine/engine.ts

}  // namespace

Napi::Object take_trace(Napi::Env env, engine::Vbd& vbd) {
    std::vector<double> numbers;
    uint64_t dropped = 0;
    uint32_t queue = 0;
    for (const auto& ring : vbd.traces()) {
        engine::TraceRecord record;
        while (numbers.size() < kMaxRecords * kFields && ring->take(record)) {
            numbers.insert(numbers.end(),
                           {static_cast<double>(record.started_ns), static_cast<double>(queue),
                            static_cast<double>(record.operation),
                            static_cast<double>(record.status), static_cast<double>(record.sector),
                            static_cast<double>(record.nr_sectors),
                            static_cast<double>(record.nr_segments),
                            static_cast<double>(record.latency_ns)});
        }
        dropped += ring->dropped();
        queue++;
    }
    auto array = Napi::Float64Array::New(env, numbers.size());
    std::copy(numbers.begin(), numbers.end(), array.Data());
    Napi::Object batch = Napi::Object::New(env);
    batch.Set("records", array);
    batch.Set("dropped", Napi::Number::New(env, static_cast<double>(dropped)));
    return batch;
}

}  // namespace vbd::node
