{
  "variables": {
    "cxx_flags": [
      "-std=c++20", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Wshadow",
      "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
      "-fstack-protector-strong", "-fno-omit-frame-pointer", "-ftrivial-auto-var-init=zero"
    ],
    "core_sources": [
      "native/blkif/request.cc",
      "native/blkif/ring.cc",
      "native/xen/mock_broker.cc",
      "native/xen/mock_client.cc",
      "native/xen/mock_connection.cc",
      "native/xen/mock_domains.cc",
      "native/xen/mock_event_channel.cc",
      "native/xen/mock_faults.cc",
      "native/xen/mock_grant_table.cc",
      "native/xen/mock_guest.cc",
      "native/xen/mock_memory.cc",
      "native/xen/mock_pins.cc",
      "native/xen/mock_socket.cc",
      "native/block/io_context.cc",
      "native/block/uring.cc",
      "native/block/file_backing.cc",
      "native/block/file_io.cc",
      "native/block/worker.cc",
      "native/block/uring_queue.cc",
      "native/block/sync_queue.cc",
      "native/block/file_device.cc",
      "native/block/memory_device.cc",
      "native/block/null_device.cc",
      "native/block/open_device.cc",
      "native/memory/in_flight.cc",
      "native/memory/page_pool.cc",
      "native/memory/persistent_grants.cc",
      "native/memory/transfer.cc",
      "native/engine/queue.cc",
      "native/engine/queue_barrier.cc",
      "native/engine/vbd.cc",
      "native/engine/reactor.cc",
      "native/guest/load.cc"
    ],
    "addon_sources": [
      "native/node/addon.cc",
      "native/node/convert.cc",
      "native/node/counters_object.cc",
      "native/node/dispatcher.cc",
      "native/node/engine_object.cc",
      "native/node/mock_broker_object.cc",
      "native/node/mock_guest_object.cc",
      "native/node/mock_load.cc",
      "native/node/mock_object.cc",
      "native/node/mock_watcher.cc",
      "native/node/options.cc"
    ]
  }
}
