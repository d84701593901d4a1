// Options: JavaScript objects to structs.
#include "node/options.h"

#include <optional>

namespace vbd::node {

namespace {

Error invalid(const char* what) {
    return Error{ErrorKind::kInvalidArgument, 0, std::string("not a valid ") + what};
}

std::string text(Napi::Object object, const char* name) {
    Napi::Value value = object.Get(name);
    return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
}

bool flag(Napi::Object object, const char* name) {
    return object.Get(name).ToBoolean().Value();
}

/// A whole number of 0..max; nothing where it is absent or anything else.
std::optional<uint64_t> whole(Napi::Value value, double max = 9007199254740991.0) {
    if (!value.IsNumber()) return std::nullopt;
    double number = value.As<Napi::Number>().DoubleValue();
    if (!(number >= 0 && number <= max) ||
        number != static_cast<double>(static_cast<uint64_t>(number))) {
        return std::nullopt;
    }
    return static_cast<uint64_t>(number);
}

Result<engine::RingSpec> ring_of(Napi::Value value) {
    if (!value.IsObject()) return invalid("ring");
    Napi::Object ring = value.As<Napi::Object>();
    Napi::Value refs = ring.Get("ringRefs");
    auto port = whole(ring.Get("eventChannel"), UINT32_MAX);
    if (!refs.IsArray() || !port) return invalid("ring");
    engine::RingSpec spec;
    spec.remote_port = static_cast<Port>(*port);
    Napi::Array list = refs.As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); i++) {
        auto ref = whole(list.Get(i), UINT32_MAX);
        if (!ref) return invalid("ring reference");
        spec.ring_refs.push_back(static_cast<GrantRef>(*ref));
    }
    return spec;
}

}  // namespace

engine::Features features_of(Napi::Object given) {
    engine::Features features;
    std::string transfer = text(given, "transfer");
    features.transfer = transfer == "persistent" ? engine::TransferChoice::kPersistent
                        : transfer == "copy"     ? engine::TransferChoice::kCopy
                        : transfer == "map"      ? engine::TransferChoice::kMap
                                                 : engine::TransferChoice::kAuto;
    features.max_indirect_segments = static_cast<uint32_t>(
        whole(given.Get("maxIndirectSegments"), blkif::kMaxIndirectSegments).value_or(0));
    features.flush = flag(given, "flush");
    features.barrier = flag(given, "barrier");
    features.discard = flag(given, "discard");
    features.secure_discard = flag(given, "secureDiscard");
    features.read_only = flag(given, "readOnly");
    return features;
}

Result<engine::ConnectionSpec> connection_of(Napi::Value value) {
    if (!value.IsObject()) return invalid("connection");
    Napi::Object given = value.As<Napi::Object>();
    engine::ConnectionSpec spec;
    auto domain = whole(given.Get("domid"), UINT16_MAX);
    if (!domain) return invalid("domain");
    spec.domain = static_cast<DomainId>(*domain);
    std::string protocol = text(given, "protocol");
    if (protocol == "x86_32-abi") {
        spec.protocol = blkif::Protocol::kX86_32;
    } else if (protocol == "x86_64-abi") {
        spec.protocol = blkif::Protocol::kX86_64;
    } else if (protocol == "arm-abi") {
        spec.protocol = blkif::Protocol::kNative;
    } else {
        return invalid("protocol");
    }
    spec.persistent = flag(given, "persistent");
    std::string take_over = text(given, "takeOver");
    if (take_over == "drained") {
        spec.take_over = engine::TakeOver::kDrained;
    } else if (take_over == "idle") {
        spec.take_over = engine::TakeOver::kIdle;
    } else if (take_over == "journaled") {
        spec.take_over = engine::TakeOver::kJournaled;
    }
    if (Napi::Value journal = given.Get("journal"); journal.IsObject()) {
        spec.journal = text(journal.As<Napi::Object>(), "path");
        spec.journal_rings = text(journal.As<Napi::Object>(), "rings");
    }
    Napi::Value rings = given.Get("rings");
    if (!rings.IsArray()) return invalid("list of rings");
    Napi::Array list = rings.As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); i++) {
        auto ring = ring_of(list.Get(i));
        if (!ring) return ring.error();
        spec.rings.push_back(std::move(ring).value());
    }
    return spec;
}

const char* name_of(memory::Strategy strategy) {
    switch (strategy) {
        case memory::Strategy::kPersistent:
            return "persistent";
        case memory::Strategy::kCopy:
            return "copy";
        case memory::Strategy::kMap:
            return "map";
    }
    return "?";
}

}  // namespace vbd::node
