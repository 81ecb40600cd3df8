//! The processor: what it is called, what it can do, and the run that proves it.

use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::proof::{self, Executor};
use super::{Backend, Device};

/// Bytes read in one pass, all threads together: more than the caches of most processors, and quick to fill.
const READ_BYTES: u64 = 128 << 20;

/// The processor, proven by a run on it.
pub(super) fn probe() -> Device {
    let memory_bytes = memory_bytes();
    Device {
        backend: Backend::Cpu,
        name: name(),
        memory_bytes,
        instructions: instructions(),
        proof: proof::prove(&Candle { threads: candle_core::utils::get_num_threads(), memory_bytes }),
    }
}

/// Products by candle, on as many threads as it is configured to use; reads on the same number.
struct Candle {
    threads: usize,
    memory_bytes: u64,
}

impl Executor for Candle {
    type Matrix = Tensor;

    fn upload(&self, rows: usize, columns: usize, values: Vec<f32>) -> Result<Tensor, String> {
        Tensor::from_vec(values, (rows, columns), &candle_core::Device::Cpu).map_err(|error| error.to_string())
    }

    fn multiply(&self, left: &Tensor, right: &Tensor) -> Result<Tensor, String> {
        left.matmul(right).map_err(|error| error.to_string())
    }

    fn download(&self, matrix: Tensor) -> Result<Vec<f32>, String> {
        matrix.flatten_all().and_then(|flat| flat.to_vec1()).map_err(|error| error.to_string())
    }

    fn read_rate(&self, time: Duration) -> Result<f64, String> {
        // A small machine must not be pushed into swapping by being measured.
        let bytes = if self.memory_bytes == 0 { READ_BYTES } else { READ_BYTES.min(self.memory_bytes / 16) };
        let words = bytes as usize / size_of::<u64>() / self.threads;
        let start = Barrier::new(self.threads);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..self.threads).map(|_| scope.spawn(|| read_for(time, words, &start))).collect();
            let rates: Option<Vec<f64>> = readers.into_iter().map(|reader| reader.join().ok()).collect();
            rates.map(|rates| rates.iter().sum()).ok_or_else(|| "a thread that reads memory panicked".to_owned())
        })
    }
}

/// Bytes a second at which this thread reads `words` words of its own, over and over.
fn read_for(time: Duration, words: usize, start: &Barrier) -> f64 {
    // Written here, so that the pages exist and lie near the processor that reads them.
    let memory: Vec<u64> = (0..words as u64).collect();
    start.wait();
    let (mut passes, begun) = (0u32, Instant::now());
    while passes == 0 || begun.elapsed() < time {
        black_box(sum(black_box(&memory)));
        passes += 1;
    }
    f64::from(passes) * size_of_val(memory.as_slice()) as f64 / begun.elapsed().as_secs_f64()
}

/// The sum of all words in independent lanes, which leaves waiting for memory as the only cost.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    for chunk in words.chunks_exact(lanes.len()) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, word)| *lane = lane.wrapping_add(*word));
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

/// The name the vendor gives the processor; its architecture where the system does not tell.
fn name() -> String {
    let from_cpuinfo = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| name_in_cpuinfo(&text));
    // Boards without a processor name have one of their own.
    let from_board = || fs::read_to_string("/proc/device-tree/model").ok();
    let found = from_cpuinfo.or_else(from_board).or_else(|| sysctl("machdep.cpu.brand_string"));
    match found.as_deref().map(|name| name.trim_matches(|c: char| c.is_whitespace() || c == '\0')) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => format!("{} processor", std::env::consts::ARCH),
    }
}

fn name_in_cpuinfo(text: &str) -> Option<String> {
    let value = |key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
        let value = line.split_once(':')?.1.trim();
        (!value.is_empty()).then(|| value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    value("model name").or_else(|| value("Hardware")).or_else(|| value("Model"))
}

/// Memory of the machine, or of the container where that is less; 0 when the system does not tell.
fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_in_meminfo(&text))
        .or_else(|| sysctl("hw.memsize").and_then(|text| text.trim().parse().ok()))
        .unwrap_or(0);
    let container = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    match container {
        // No limit is written as a number near 2^63, or as "max", which does not parse.
        Some(limit) if machine > 0 => machine.min(limit),
        _ => machine,
    }
}

fn total_in_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What macOS says about itself; none on other systems.
fn sysctl(key: &str) -> Option<String> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let output = Command::new("/usr/sbin/sysctl").args(["-n", key]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    let sets = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    present(&sets)
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;

    let sets = [
        ("neon", is_aarch64_feature_detected!("neon")),
        ("fp16", is_aarch64_feature_detected!("fp16")),
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
        ("bf16", is_aarch64_feature_detected!("bf16")),
        ("sve", is_aarch64_feature_detected!("sve")),
    ];
    present(&sets)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn present(sets: &[(&'static str, bool)]) -> Vec<&'static str> {
    sets.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_every_form_of_cpuinfo() {
        let amd = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC  9654   96-Core\n";
        assert_eq!(name_in_cpuinfo(amd).as_deref(), Some("AMD EPYC 9654 96-Core"));
        let board = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4\n";
        assert_eq!(name_in_cpuinfo(board).as_deref(), Some("BCM2835"));
        assert_eq!(name_in_cpuinfo("processor\t: 0\nCPU part\t: 0xd40\n"), None);
        assert_eq!(name_in_cpuinfo(""), None);
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(total_in_meminfo("MemTotal:       24684092 kB\nMemFree: 1 kB\n"), Some(24_684_092 * 1024));
        assert_eq!(total_in_meminfo("MemTotal: many kB\n"), None);
        assert_eq!(total_in_meminfo(""), None);
    }

    #[test]
    fn the_sum_reads_every_word() {
        let words: Vec<u64> = (0..64).collect();
        assert_eq!(sum(&words), 63 * 64 / 2);
    }
}
