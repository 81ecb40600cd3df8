//! This machine's devices, as they are told to others.

use accel_backends::device;
use accel_protocol::{Backend, Device, Proof};

/// Probes every backend: each device is proven by a run that happens now, or not available, with the reason.
pub fn probe() -> Vec<Device> {
    device::probe().into_iter().map(told).collect()
}

/// Bytes of memory that the processor computes from; none when not known.
pub fn memory_bytes(devices: &[Device]) -> Option<u64> {
    devices.iter().find(|device| device.backend == Backend::Cpu).map(|cpu| cpu.memory_bytes).filter(|bytes| *bytes > 0)
}

/// The devices as others are to see them: the processor computes from no more memory than models may take.
pub fn within(devices: Vec<Device>, budget_bytes: u64) -> Vec<Device> {
    let bounded = |device: Device| match device.backend {
        Backend::Cpu => Device { memory_bytes: device.memory_bytes.min(budget_bytes), ..device },
        _ => device,
    };
    devices.into_iter().map(bounded).collect()
}

fn told(device: device::Device) -> Device {
    let backend = match device.backend {
        device::Backend::Cpu => Backend::Cpu,
        device::Backend::Cuda => Backend::Cuda,
        device::Backend::Rocm => Backend::Rocm,
        device::Backend::Mps => Backend::Mps,
        device::Backend::OpenVino => Backend::OpenVino,
        device::Backend::Qnn => Backend::Qnn,
    };
    let proof = device
        .proof
        .map(|proof| Proof {
            gflops: proof.gflops,
            gbytes_per_second: proof.gbytes_per_second,
            max_error: proof.max_error,
        })
        .map_err(|unavailable| unavailable.to_string());
    Device { backend, name: device.name, memory_bytes: device.memory_bytes, proof }
}
