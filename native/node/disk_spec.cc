#include "node/disk_spec.h"

#include <string>
#include <utility>

#include "node/convert.h"

namespace vbd::node {

namespace {

constexpr uint64_t kMaxWhole = 9007199254740991;  // Number.MAX_SAFE_INTEGER
constexpr uint32_t kMaxDepth = 64;                // of stages over stages

Error invalid(const std::string& what) {
    return Error{ErrorKind::kInvalidArgument, 0, "not a valid " + what};
}

/// Reads one object's members; the first that is wrong is the error.
class Fields {
  public:
    explicit Fields(Napi::Object object) : object_(object) {}

    std::string text(const char* name) const {
        Napi::Value value = object_.Get(name);
        return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
    }
    bool flag(const char* name) const { return object_.Get(name).ToBoolean().Value(); }

    /// `absent` where there is none.
    uint64_t whole(const char* name, uint64_t absent) {
        Napi::Value value = object_.Get(name);
        return value.IsUndefined() ? absent : whole(name);
    }
    uint64_t whole(const char* name) {
        auto number = whole_number(object_.Get(name), name, 0, kMaxWhole);
        if (number) return number.value();
        if (status_) status_ = number.error();
        return 0;
    }

    /// The same of 32 bits: what does not fit is not what was meant.
    uint32_t whole32(const char* name, uint32_t absent) {
        const uint64_t number = whole(name, absent);
        if (number <= UINT32_MAX) return static_cast<uint32_t>(number);
        if (status_) status_ = invalid(name);
        return absent;
    }

    double real(const char* name, double min, double max) {
        Napi::Value value = object_.Get(name);
        const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
        if (number >= min && number <= max) return number;
        if (status_) status_ = invalid(name);
        return min;
    }
    std::vector<std::string> texts(const char* name) const {
        std::vector<std::string> all;
        Napi::Value value = object_.Get(name);
        if (!value.IsArray()) return all;
        auto list = value.As<Napi::Array>();
        for (uint32_t i = 0; i < list.Length(); i++) {
            all.push_back(Napi::Value(list.Get(i)).ToString().Utf8Value());
        }
        return all;
    }
    std::vector<uint8_t> bytes(const char* name) const {
        Napi::Value value = object_.Get(name);
        if (!value.IsBuffer()) return {};
        auto buffer = value.As<Napi::Buffer<uint8_t>>();
        return {buffer.Data(), buffer.Data() + buffer.Length()};
    }

    Napi::Value get(const char* name) const { return object_.Get(name); }
    const Status& status() const { return status_; }

  private:
    Napi::Object object_;
    Status status_;
};

void read_file_options(Fields& fields, block::DeviceOptions& options) {
    options.path = fields.text("path");
    options.read_only = fields.flag("readOnly");
    options.write_through = fields.flag("writeThrough");
    Napi::Value direct = fields.get("direct");
    if (direct.IsBoolean()) {
        options.direct =
            direct.ToBoolean().Value() ? block::DirectChoice::kOn : block::DirectChoice::kOff;
    }
    const std::string io = fields.text("io");
    if (io == "sync") options.io = block::IoChoice::kSync;
    if (io == "uring") options.io = block::IoChoice::kUring;
}

/// False: `driver` is no leaf.
bool read_leaf(const std::string& driver, Fields& fields, stages::DiskSpec& spec) {
    block::DeviceOptions options;
    options.sector_size = fields.whole32("sectorSize", 512);
    if (driver == "file") {
        options.driver = block::Driver::kFile;
        read_file_options(fields, options);
    } else {
        if (driver == "memory") {
            options.driver = block::Driver::kMemory;
        } else if (driver == "null") {
            options.driver = block::Driver::kNull;
            options.no_fill = fields.flag("noFill");
        } else if (driver == "zero") {
            options.driver = block::Driver::kZero;
        } else if (driver == "pattern") {
            options.driver = block::Driver::kPattern;
            options.seed = fields.whole("seed", 0);
        } else {
            return false;
        }
        options.size_bytes = fields.whole("sizeBytes");
    }
    spec.stage = std::move(options);
    return true;
}

stages::ThrottleOptions throttle_of(Fields& fields) {
    return {.iops = fields.real("iops", 0, 1e15),
            .bps = fields.real("bps", 0, 1e15),
            .burst_s = fields.real("burstSeconds", 0, 3600),
            .group = fields.text("group")};
}

stages::DelayOptions delay_of(Fields& fields) {
    stages::DelayOptions options;
    const char* names[] = {"readMs", "writeMs", "flushMs", "discardMs"};
    for (size_t i = 0; i < options.delay_ns.size(); i++) {
        options.delay_ns[i] = static_cast<uint64_t>(fields.real(names[i], 0, 3.6e6) * 1e6);
    }
    return options;
}

uint32_t operations_of(Fields& fields) {
    uint32_t bits = 0;
    const auto bit = [](block::IoOp op) { return 1u << static_cast<uint32_t>(op); };
    for (const std::string& name : fields.texts("ops")) {
        if (name == "read") bits |= bit(block::IoOp::kRead);
        if (name == "write") bits |= bit(block::IoOp::kWrite);
        if (name == "flush") bits |= bit(block::IoOp::kFlush);
        if (name == "discard") {
            bits |= bit(block::IoOp::kDiscard) | bit(block::IoOp::kSecureDiscard);
        }
    }
    return bits;
}

stages::FaultOptions fault_of(Fields& fields) {
    stages::FaultOptions options;
    options.operations = operations_of(fields);
    options.error = static_cast<int>(fields.whole32("errno", 0));
    options.probability = fields.real("probability", 0, 1);
    options.seed = fields.whole("seed", 0);
    options.begin_bytes = fields.whole("offsetBytes", 0);
    const uint64_t length = fields.whole("lengthBytes", UINT64_MAX);
    if (length <= UINT64_MAX - options.begin_bytes) {
        options.end_bytes = options.begin_bytes + length;
    }
    options.skip = fields.whole("skip", 0);
    options.count = fields.whole("count", UINT64_MAX);
    return options;
}

stages::EncryptOptions encrypt_of(Fields& fields) {
    return {.key = std::make_shared<stages::Secret>(fields.bytes("key")),
            .unit_bytes = fields.whole32("unitBytes", 512),
            .iv_offset_sectors = fields.whole("ivOffsetSectors", 0),
            .discard = fields.flag("discard")};
}

bool read_stage(const std::string& driver, Fields& fields, stages::DiskSpec& spec) {
    if (driver == "slice") {
        spec.stage = stages::SliceOptions{.offset_bytes = fields.whole("offsetBytes"),
                                          .length_bytes = fields.whole("lengthBytes", 0)};
    } else if (driver == "concat") {
        spec.stage = stages::ConcatOptions{};
    } else if (driver == "throttle") {
        spec.stage = throttle_of(fields);
    } else if (driver == "delay") {
        spec.stage = delay_of(fields);
    } else if (driver == "fault") {
        spec.stage = fault_of(fields);
    } else if (driver == "log") {
        spec.stage =
            stages::LogOptions{.records = fields.whole32("records", 16384)};
    } else if (driver == "verify") {
        spec.stage = stages::VerifyOptions{
            .block_bytes = fields.whole32("blockBytes", 4096),
            .report_only = fields.flag("reportOnly")};
    } else if (driver == "encrypt") {
        spec.stage = encrypt_of(fields);
    } else if (driver == "overlay") {
        spec.stage = stages::OverlayOptions{
            .scratch = fields.text("scratch"),
            .granule_bytes = fields.whole32("granuleBytes", 4096),
            .read_only = fields.flag("readOnly")};
    } else if (driver == "cache") {
        spec.stage = stages::CacheOptions{
            .memory_bytes = fields.whole("memoryBytes"),
            .write_back_ns = static_cast<uint64_t>(fields.real("writeBackMs", 0, 3.6e6) * 1e6)};
    } else if (driver == "readAhead") {
        spec.stage = stages::ReadAheadOptions{.memory_bytes = fields.whole("memoryBytes"),
                                              .window_bytes = fields.whole("windowBytes")};
    } else {
        return false;
    }
    return true;
}

Result<stages::DiskSpec> spec_of(Napi::Value value, uint32_t depth);

Status read_bases(Fields& fields, stages::DiskSpec& spec, uint32_t depth) {
    std::vector<Napi::Value> below;
    if (Napi::Value parts = fields.get("parts"); parts.IsArray()) {
        auto list = parts.As<Napi::Array>();
        for (uint32_t i = 0; i < list.Length(); i++) below.push_back(list.Get(i));
    } else {
        below.push_back(fields.get("base"));
    }
    for (Napi::Value each : below) {
        auto base = spec_of(each, depth + 1);
        if (!base) return base.error();
        spec.bases.push_back(std::move(base).value());
    }
    return {};
}

Result<stages::DiskSpec> spec_of(Napi::Value value, uint32_t depth) {
    if (!value.IsObject() || depth > kMaxDepth) return invalid("disk");
    Fields fields(value.As<Napi::Object>());
    const std::string driver = fields.text("driver");
    stages::DiskSpec spec;
    if (!read_leaf(driver, fields, spec)) {
        if (!read_stage(driver, fields, spec)) return invalid("driver: '" + driver + "'");
        if (Status s = read_bases(fields, spec, depth); !s) return s.error();
    }
    if (!fields.status()) return fields.status().error();
    return spec;
}

}  // namespace

Result<stages::DiskSpec> disk_spec_of(Napi::Value spec) {
    return spec_of(spec, 0);
}

}  // namespace vbd::node
