// QueueCounters: everything one ring counts. Written by its reactor alone, read by any thread at
// any time; made once per ring of a vbd and kept over its connections, so that a reader never holds
// a dangling one.
#pragma once

#include "base/counters.h"
#include "base/histogram.h"
#include "blkif/request.h"
#include "memory/transfer.h"

namespace vbd::engine {

struct OperationCounters {
    Counter requests;  // answered OK
    Counter sectors;   // of those, 512-byte units
    Counter errors;    // accepted, then answered otherwise
    Histogram latency_ns;
};

struct QueueCounters {
    OperationCounters read;
    OperationCounters write;  // barriers too
    OperationCounters flush;
    OperationCounters discard;
    Counter rejected[blkif::kRejectKinds];
    Counter disk_errors;
    Counter out_of_requests;
    Counter notifications_sent;
    Counter notifications_saved;
    Counter events;
    Counter spurious_events;
    Counter wakeups;
    Gauge in_flight;
    Histogram ring_utilisation;      // requests found per pass that found any
    Histogram segments_per_request;  // of reads and writes
    memory::TransferCounters transfer;
};

}  // namespace vbd::engine
