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
    options.sector_size = static_cast<uint32_t>(fields.whole("sectorSize", 512));
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

bool read_stage(const std::string& driver, Fields& fields, stages::DiskSpec& spec) {
    if (driver == "slice") {
        spec.stage = stages::SliceOptions{.offset_bytes = fields.whole("offsetBytes"),
                                          .length_bytes = fields.whole("lengthBytes", 0)};
        return true;
    }
    return false;
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
