// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// The freestanding part of the library. <ballast/memory/mapped_memory.hpp> and <ballast/host/...>
// are for hosted programs and stay outside.
// IWYU pragma: begin_exports
#include <ballast/balloon/adjustment.hpp>
#include <ballast/balloon/device.hpp>
#include <ballast/balloon/device_config.hpp>
#include <ballast/balloon/device_host.hpp>
#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/device_pages.hpp>
#include <ballast/balloon/device_queues.hpp>
#include <ballast/balloon/device_statistics.hpp>
#include <ballast/balloon/device_work.hpp>
#include <ballast/balloon/driver.hpp>
#include <ballast/balloon/driver_options.hpp>
#include <ballast/balloon/hint_device.hpp>
#include <ballast/balloon/hint_driver.hpp>
#include <ballast/balloon/hint_queue.hpp>
#include <ballast/balloon/host_pages.hpp>
#include <ballast/balloon/inflation.hpp>
#include <ballast/balloon/page_queue.hpp>
#include <ballast/balloon/page_ranges.hpp>
#include <ballast/balloon/page_source.hpp>
#include <ballast/balloon/pressure.hpp>
#include <ballast/balloon/pressure_degraded.hpp>
#include <ballast/balloon/pressure_levels.hpp>
#include <ballast/balloon/pressure_rules.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/reporting_driver.hpp>
#include <ballast/balloon/request_queue.hpp>
#include <ballast/balloon/retry_timer.hpp>
#include <ballast/balloon/statistic_table.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/balloon/statistics_driver.hpp>
#include <ballast/endian.hpp>
#include <ballast/memory/array_memory.hpp>
#include <ballast/memory/direct_memory.hpp>
#include <ballast/memory/dirty_memory.hpp>
#include <ballast/memory/fence.hpp>
#include <ballast/memory/guest_memory.hpp>
#include <ballast/result.hpp>
#include <ballast/version.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/config_space.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/driver_transport.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtio/in_process_transport.hpp>
#include <ballast/virtio/negotiation.hpp>
#include <ballast/virtio/shared_value.hpp>
#include <ballast/virtqueue/chain.hpp>
#include <ballast/virtqueue/device_queue.hpp>
#include <ballast/virtqueue/driver_queue.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/packed_device.hpp>
#include <ballast/virtqueue/packed_driver.hpp>
#include <ballast/virtqueue/packed_rings.hpp>
#include <ballast/virtqueue/queue_state.hpp>
#include <ballast/virtqueue/split_device.hpp>
#include <ballast/virtqueue/split_driver.hpp>
#include <ballast/virtqueue/split_rings.hpp>
#include <ballast/virtqueue/virtqueue.hpp>
// IWYU pragma: end_exports
