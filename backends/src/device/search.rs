//! Looking for devices other than the processor: their device files, and the libraries that drive them.
//!
//! Only names of files are looked at. No vendor library is loaded, because loading one runs its code in this process,
//! and this build has nothing to do with it afterwards. So what is found here is reported as found and as not usable,
//! with what is missing: the hardware, its driver, or an executor in this build.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Backend, Device, Unavailable};

/// Folders that vendors install into and that the dynamic linker is not always told about. A `*` stands for any name.
const VENDOR_DIRECTORIES: [&str; 13] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/*-linux-gnu",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/opt/rocm*/lib",
    "/opt/intel/openvino*/runtime/lib/*",
    "/opt/qcom/aistack/qairt/*/lib/*",
    "/vendor/lib64",
    "/Windows/System32",
];

/// Where drivers are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder that stands for `/`.
    root: PathBuf,
    /// Folders with libraries, in order.
    libraries: Vec<PathBuf>,
}

impl Places {
    /// The folders that the dynamic linker is configured with and those that vendors install into.
    pub fn system() -> Self {
        Self::below(Path::new("/"))
    }

    /// The same folders below another root, such as a mounted system.
    pub fn below(root: &Path) -> Self {
        let configured = linker_directories(root, "/etc/ld.so.conf", 0);
        let vendors = VENDOR_DIRECTORIES.iter().map(|&directory| directory.to_owned());
        let libraries = configured.into_iter().chain(vendors).flat_map(|pattern| expand(root, &pattern)).collect();
        Self { root: root.to_owned(), libraries }
    }

    /// Look in these folders first, such as those of `LD_LIBRARY_PATH`, which this crate does not read.
    #[must_use]
    pub fn with_libraries(mut self, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        self.libraries.splice(0..0, folders);
        self
    }

    fn has(&self, path: &str) -> bool {
        below(&self.root, path).exists()
    }

    /// The folders in `path`, sorted.
    fn folders(&self, path: &str) -> Vec<PathBuf> {
        entries(&below(&self.root, path))
    }

    /// A library whose file name is `name`, or `name` with a version behind it, as in `libamdhip64.so.6`.
    fn library(&self, name: &str) -> Option<PathBuf> {
        self.libraries.iter().flat_map(|folder| entries(folder)).find(|path| {
            let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
            file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

/// NVIDIA's cards.
pub(super) fn cuda(places: &Places) -> Vec<Device> {
    let backend = Backend::Cuda;
    let cards = places.folders("/proc/driver/nvidia/gpus");
    let models: Vec<String> = cards.iter().filter_map(|card| nvidia_model(&card.join("information"))).collect();
    // Under the Windows subsystem for Linux the card is reached by /dev/dxg, which other vendors' cards use too.
    let library = places.library("libcuda.so").or_else(|| places.library("nvcuda.dll"));
    let present = places.has("/dev/nvidiactl") || (places.has("/dev/dxg") && library.is_some());
    if models.is_empty() && !present {
        let advice = "a CUDA device needs an NVIDIA card and NVIDIA's driver (in a container, also --gpus all)";
        let looked_for = "/dev/nvidiactl, /dev/dxg, /proc/driver/nvidia/gpus".to_owned();
        return vec![Device::missing(backend, Unavailable::NotFound { looked_for, advice })];
    }
    let models = if models.is_empty() { vec!["an NVIDIA card".to_owned()] } else { models };
    models
        .into_iter()
        .map(|model| {
            let advice = "install NVIDIA's driver libraries";
            let reason = without_executor(backend, &model, library.as_deref(), "libcuda.so.1", advice);
            Device { name: model, ..Device::missing(backend, reason) }
        })
        .collect()
}

/// The line `Model:  NVIDIA H200` of a card's information file.
fn nvidia_model(information: &Path) -> Option<String> {
    let text = fs::read_to_string(information).ok()?;
    let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim();
    (!model.is_empty()).then(|| model.to_owned())
}

/// AMD's cards.
pub(super) fn rocm(places: &Places) -> Vec<Device> {
    let backend = Backend::Rocm;
    let nodes = places.folders("/sys/class/kfd/kfd/topology/nodes");
    let cards: Vec<(String, u64)> = nodes.iter().filter_map(|node| amd_card(node)).collect();
    if !places.has("/dev/kfd") {
        let advice = "install the amdgpu driver with ROCm support (in a container, also --device /dev/kfd)";
        let reason = match amd_display_card(places) {
            Some(found) => Unavailable::NoDriver { found, missing: "/dev/kfd".to_owned(), advice },
            None => Unavailable::NotFound {
                looked_for: "/dev/kfd, an AMD card (vendor 0x1002) in /sys/class/drm".to_owned(),
                advice: "a ROCm device needs an AMD card and the amdgpu driver",
            },
        };
        return vec![Device::missing(backend, reason)];
    }
    let library = places.library("libamdhip64.so");
    let cards = if cards.is_empty() { vec![("an AMD card".to_owned(), 0)] } else { cards };
    cards
        .into_iter()
        .map(|(name, memory_bytes)| {
            let reason =
                without_executor(backend, &name, library.as_deref(), "libamdhip64.so", "install ROCm's HIP runtime");
            Device { name, memory_bytes, ..Device::missing(backend, reason) }
        })
        .collect()
}

/// Name and memory of a node of AMD's topology; none for a processor, which is listed there too.
fn amd_card(node: &Path) -> Option<(String, u64)> {
    let number = |text: &str, key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    };
    let properties = fs::read_to_string(node.join("properties")).ok()?;
    if number(&properties, "simd_count ")? == 0 {
        return None;
    }
    let name = fs::read_to_string(node.join("name")).unwrap_or_default();
    let name = if name.trim().is_empty() { "an AMD card" } else { name.trim() };
    let banks = entries(&node.join("mem_banks"));
    let bytes =
        banks.iter().filter_map(|bank| number(&fs::read_to_string(bank.join("properties")).ok()?, "size_in_bytes "));
    Some((name.to_owned(), bytes.fold(0, u64::saturating_add)))
}

fn amd_display_card(places: &Places) -> Option<String> {
    let cards = places.folders("/sys/class/drm");
    let amd = |card: &PathBuf| fs::read_to_string(card.join("device/vendor")).is_ok_and(|id| id.trim() == "0x1002");
    let card = cards.iter().find(|card| amd(card))?;
    Some(format!("an AMD card at {}", card.display()))
}

/// Apple's graphics processor, which exists wherever macOS does.
pub(super) fn mps() -> Device {
    let backend = Backend::Mps;
    let reason = if cfg!(target_os = "macos") {
        Unavailable::NoExecutor { found: "Apple's Metal".to_owned(), backend }
    } else {
        let here = format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH);
        Unavailable::OtherSystem { backend, needs: "macOS", here }
    };
    Device::missing(backend, reason)
}

/// Intel's OpenVINO, which runs on processors, graphics processors and NPUs.
pub(super) fn openvino(places: &Places) -> Device {
    let backend = Backend::OpenVino;
    let names = ["libopenvino_c.so", "libopenvino_c.dylib", "openvino_c.dll"];
    let reason = match names.iter().find_map(|name| places.library(name)) {
        Some(library) => Unavailable::NoExecutor { found: format!("{}", library.display()), backend },
        None => Unavailable::NotFound {
            looked_for: libraries_looked_for(places, names[0]),
            advice: "OpenVINO needs Intel's OpenVINO runtime",
        },
    };
    Device::missing(backend, reason)
}

/// Qualcomm's neural processor.
pub(super) fn qnn(places: &Places) -> Device {
    let backend = Backend::Qnn;
    let names = ["libQnnHtp.so", "QnnHtp.dll"];
    let nodes = ["/dev/fastrpc-cdsp", "/dev/adsprpc-smd"];
    let node = nodes.into_iter().find(|node| places.has(node));
    let reason = match (names.iter().find_map(|name| places.library(name)), node) {
        (Some(library), _) => Unavailable::NoExecutor { found: format!("{}", library.display()), backend },
        (None, Some(node)) => Unavailable::NoDriver {
            found: format!("a Qualcomm signal processor at {node}"),
            missing: libraries_looked_for(places, names[0]),
            advice: "install Qualcomm's AI Engine Direct (QNN) runtime",
        },
        (None, None) => Unavailable::NotFound {
            looked_for: format!("{}; {}", nodes.join(", "), libraries_looked_for(places, names[0])),
            advice: "QNN needs a Qualcomm processor and its AI Engine Direct runtime",
        },
    };
    Device::missing(backend, reason)
}

/// Why a device that was found is not used: its library is missing, or else this build's executor.
fn without_executor(
    backend: Backend,
    device: &str,
    library: Option<&Path>,
    library_name: &str,
    advice: &'static str,
) -> Unavailable {
    let found = device.to_owned();
    match library {
        Some(_) => Unavailable::NoExecutor { found, backend },
        None => Unavailable::NoDriver { found, missing: library_name.to_owned(), advice },
    }
}

fn libraries_looked_for(places: &Places, name: &str) -> String {
    format!("{name} in {} library folders", places.libraries.len())
}

/// Folders named by the dynamic linker's configuration and the files it includes.
fn linker_directories(root: &Path, path: &str, depth: u32) -> Vec<String> {
    // A file may include itself.
    if depth > 4 {
        return Vec::new();
    }
    let Ok(text) = fs::read_to_string(below(root, path)) else { return Vec::new() };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .flat_map(|line| match line.strip_prefix("include ") {
            Some(pattern) => included(root, pattern.trim(), depth),
            None => vec![line.to_owned()],
        })
        .collect()
}

fn included(root: &Path, pattern: &str, depth: u32) -> Vec<String> {
    let files = expand(root, pattern);
    let names = files.iter().filter_map(|file| file.strip_prefix(root).ok()?.to_str());
    names.flat_map(|name| linker_directories(root, &format!("/{name}"), depth + 1)).collect()
}

/// The existing paths below `root` that an absolute pattern names; each component may hold one `*`.
fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        paths = match part.split_once('*') {
            None => paths.into_iter().map(|path| path.join(part)).filter(|path| path.exists()).collect(),
            Some((start, end)) => paths
                .iter()
                .flat_map(|path| entries(path))
                .filter(|path| {
                    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
                })
                .collect(),
        };
    }
    paths
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// What lies in a folder, sorted; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files, each `path=content`.
    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = below(root.path(), path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let places = Places::below(root.path());
        (root, places)
    }

    fn reason(device: &Device) -> String {
        device.proof.as_ref().unwrap_err().to_string()
    }

    #[test]
    fn an_empty_system_says_what_was_looked_for() {
        let (_root, places) = system(&[]);
        let all = [&cuda(&places)[..], &rocm(&places), &[openvino(&places), qnn(&places)]].concat();
        let reasons: Vec<String> = all.iter().map(reason).collect();
        assert!(reasons[0].contains("/dev/nvidiactl") && reasons[0].contains("NVIDIA's driver"), "{reasons:?}");
        assert!(reasons[1].contains("/dev/kfd") && reasons[1].contains("amdgpu"), "{reasons:?}");
        assert!(reasons[2].contains("libopenvino_c.so in 0 library folders"), "{reasons:?}");
        assert!(reasons[3].contains("libQnnHtp.so") && reasons[3].contains("/dev/fastrpc-cdsp"), "{reasons:?}");
    }

    #[test]
    fn each_nvidia_card_is_named_with_what_is_missing() {
        let card = |number: &str| format!("/proc/driver/nvidia/gpus/0000:0{number}:00.0/information");
        let (first, second) = (card("1"), card("2"));
        let cards = [(first.as_str(), "Model: \t\t NVIDIA H200\nIRQ: 1\n"), (second.as_str(), "Model: NVIDIA L4\n")];
        let (_root, places) = system(&cards);
        let found = cuda(&places);
        assert_eq!(found.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(), ["NVIDIA H200", "NVIDIA L4"]);
        assert_eq!(reason(&found[1]), "found NVIDIA L4, but not libcuda.so.1; install NVIDIA's driver libraries");

        let library = ("/usr/lib/x86_64-linux-gnu/libcuda.so.1", "");
        let (_root, places) = system(&[cards[0], library]);
        assert_eq!(reason(&cuda(&places)[0]), "found NVIDIA H200, but this build has no CUDA executor");
    }

    #[test]
    fn amd_cards_are_told_from_processors() {
        let node = "/sys/class/kfd/kfd/topology/nodes";
        let files = [
            ("/dev/kfd".to_owned(), ""),
            (format!("{node}/0/properties"), "cpu_cores_count 8\nsimd_count 0\n"),
            (format!("{node}/1/properties"), "cpu_cores_count 0\nsimd_count 1216\n"),
            (format!("{node}/1/name"), "gfx942\n"),
            (format!("{node}/1/mem_banks/0/properties"), "heap_type 1\nsize_in_bytes 206141652992\n"),
            ("/opt/rocm-6.4.1/lib/libamdhip64.so.6".to_owned(), ""),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let (_root, places) = system(&files);
        let found = rocm(&places);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].name.as_str(), found[0].memory_bytes), ("gfx942", 206_141_652_992));
        assert_eq!(reason(&found[0]), "found gfx942, but this build has no ROCm executor");

        let (_root, places) = system(&[("/sys/class/drm/card0/device/vendor", "0x1002\n")]);
        assert!(reason(&rocm(&places)[0]).contains("card0, but not /dev/kfd; install"));
    }

    #[test]
    fn libraries_are_found_by_the_linkers_configuration_and_by_folders_given() {
        let (root, places) = system(&[
            ("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n# /commented\n"),
            ("/etc/ld.so.conf.d/vendor.conf", "/srv/vendor/lib\ninclude /etc/ld.so.conf\n"),
            ("/srv/vendor/lib/libopenvino_c.so.2640", ""),
            ("/srv/other/libQnnHtp.so", ""),
            ("/srv/vendor/lib/libQnnHtpPrepare.so", ""),
        ]);
        let found = openvino(&places);
        assert!(reason(&found).ends_with("libopenvino_c.so.2640, but this build has no OpenVINO executor"));
        assert!(reason(&qnn(&places)).starts_with("none found"));
        let places = places.with_libraries([root.path().join("srv/other")]);
        assert!(reason(&qnn(&places)).ends_with("libQnnHtp.so, but this build has no QNN executor"));
    }
}
