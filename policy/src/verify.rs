//! Looks at a confined process from outside, through /proc, and believes nothing that it says.
//!
//! The broker calls [`Verified::of`] after the process has said Ready and before it hands anything over, and again
//! whenever it wants to know: `inspect` prints the same value. Landlock does not show in /proc; for it there is only the
//! process's own word.

mod status;

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::unistd::Pid;

use crate::layer::{Layer, Layers};
pub use status::Status;

/// The name by which guest RAM shows in /proc/PID/maps: that of its memfd.
const GUEST_RAM: &str = "/memfd:guest-ram";

/// What was seen of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its id as the verifier sees it.
    pub pid: Pid,
    /// The attributes of every thread, by thread id.
    pub threads: BTreeMap<i32, Status>,
    /// Namespaces that are not the verifier's.
    pub own_namespaces: Layers,
    /// Descriptors: number and what it is, as the link in /proc says.
    pub descriptors: BTreeMap<u32, String>,
    /// Bytes of address space that map guest RAM.
    pub guest_ram: u64,
    /// The file systems it sees: kind and options.
    pub mounts: Vec<String>,
    /// Names in its root directory.
    pub root_entries: usize,
    /// Its limit on core files in bytes, as written in /proc/PID/limits.
    pub core_limit: String,
}

/// A fault that verification found. Each names what is missing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum VerifyError {
    #[error("reading {path} of the process that is to be verified: has it ended, or is /proc hidden (hidepid)?")]
    Read { path: String, source: io::Error },
    #[error("{path} does not have the form that is known: {line}")]
    Form { path: String, line: String },
    #[error("process {pid} lacks the layer `{layer}`: {found}. Remedy: {}; or accept it with --allow-missing {layer}", layer.remedy())]
    Lacks { pid: Pid, layer: Layer, found: String },
    #[error("process {pid} holds descriptors {found:?}; expected were {expected:?}")]
    Descriptors { pid: Pid, found: Vec<String>, expected: Vec<String> },
    #[error("process {pid} has {found} threads before it was given anything; one was expected")]
    Threads { pid: Pid, found: usize },
}

impl Verified {
    /// Looks at `pid`, judging nothing.
    pub fn of(pid: Pid) -> Result<Self, VerifyError> {
        let mut threads = BTreeMap::new();
        for (name, _) in entries(&format!("/proc/{pid}/task"))? {
            let path = format!("/proc/{pid}/task/{name}/status");
            match fs::read_to_string(&path) {
                Ok(text) => {
                    threads.insert(number(&path, &name)?, Status::parse(&text, &path)?);
                }
                Err(e) if has_ended(&e) => {}
                Err(source) => return Err(VerifyError::Read { path, source }),
            }
        }
        let path = format!("/proc/{pid}/fd");
        let mut descriptors = BTreeMap::new();
        for (name, target) in entries(&path)? {
            descriptors.insert(number(&path, &name)?, target);
        }
        Ok(Self {
            pid,
            threads,
            own_namespaces: own_namespaces(pid)?,
            descriptors,
            guest_ram: mapped(pid, GUEST_RAM)?,
            mounts: mounts(pid)?,
            root_entries: entries(&format!("/proc/{pid}/root"))?.len(),
            core_limit: core_limit(pid)?,
        })
    }

    /// Judges it: every layer that shows from outside must be there, or be tolerated by name.
    pub fn check(&self, tolerate: &Layers) -> Result<(), VerifyError> {
        let findings = self.findings();
        match findings.into_iter().find(|(layer, _)| !tolerate.contains(layer)) {
            Some((layer, found)) => Err(VerifyError::Lacks { pid: self.pid, layer, found }),
            None => Ok(()),
        }
    }

    /// Judges its descriptors: exactly one for each of `expected`, which are beginnings of what /proc calls them.
    pub fn check_descriptors(&self, expected: &[&str]) -> Result<(), VerifyError> {
        if accounted_for(self.descriptors.values().map(String::as_str), expected) {
            return Ok(());
        }
        let found = self.descriptors.values().cloned().collect();
        Err(VerifyError::Descriptors { pid: self.pid, found, expected: expected.iter().map(|e| (*e).into()).collect() })
    }

    /// Judges its threads: what it did with one thread holds for all that it makes later.
    pub fn check_single_threaded(&self) -> Result<(), VerifyError> {
        match self.threads.len() {
            1 => Ok(()),
            found => Err(VerifyError::Threads { pid: self.pid, found }),
        }
    }

    /// Everything that is not as it must be.
    pub fn findings(&self) -> Vec<(Layer, String)> {
        let mut findings: Vec<(Layer, String)> = Layer::NAMESPACES
            .into_iter()
            .filter(|layer| !self.own_namespaces.contains(layer))
            .map(|layer| (layer, "it is in the broker's own".into()))
            .collect();
        for (thread, status) in &self.threads {
            findings
                .extend(status.findings().into_iter().map(|(layer, what)| (layer, format!("thread {thread}: {what}"))));
        }
        let bare = matches!(&self.mounts[..], [only] if only.starts_with("tmpfs ro")) && self.root_entries == 0;
        if !bare {
            findings.push((Layer::EmptyRoot, format!("mounts {:?}, {} names in /", self.mounts, self.root_entries)));
        }
        if self.core_limit != "0" {
            findings.push((Layer::Limits, format!("core files up to {}", self.core_limit)));
        }
        findings
    }
}

/// A thread may end between the listing and the look at it: ENOENT when its directory is gone, ESRCH when only it is
/// (proc(5)). A whole process that ended is noticed by the looks that follow.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// True if each of `found` begins with one of `expected`, and none is left. The longest beginning is taken: a shorter one is
/// left for what has no other.
fn accounted_for<'a>(mut found: impl Iterator<Item = &'a str>, expected: &[&str]) -> bool {
    let mut left = expected.to_vec();
    let known = found.all(|found| {
        let fitting = (0..left.len()).filter(|place| found.starts_with(left[*place]));
        fitting.max_by_key(|place| left[*place].len()).map(|place| left.swap_remove(place)).is_some()
    });
    known && left.is_empty()
}

/// The names in a directory, with what each links to ("" if it is no link).
fn entries(path: &str) -> Result<Vec<(String, String)>, VerifyError> {
    let error = |source| VerifyError::Read { path: path.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(error)? {
        let entry = entry.map_err(error)?;
        let target = fs::read_link(entry.path()).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
        found.push((entry.file_name().to_string_lossy().into_owned(), target));
    }
    Ok(found)
}

fn read(path: &str) -> Result<String, VerifyError> {
    fs::read_to_string(path).map_err(|source| VerifyError::Read { path: path.into(), source })
}

fn number<T: std::str::FromStr>(path: &str, text: &str) -> Result<T, VerifyError> {
    text.parse().map_err(|_| VerifyError::Form { path: path.into(), line: text.into() })
}

fn own_namespaces(pid: Pid) -> Result<Layers, VerifyError> {
    let link = |path: String| fs::read_link(&path).map_err(|source| VerifyError::Read { path, source });
    let mut own = Layers::new();
    for layer in Layer::NAMESPACES {
        let file = match layer {
            Layer::MountNamespace => "mnt",
            other => other.name().trim_end_matches("-namespace"),
        };
        if link(format!("/proc/{pid}/ns/{file}"))? != link(format!("/proc/self/ns/{file}"))? {
            own.insert(layer);
        }
    }
    Ok(own)
}

/// Bytes of address space whose mapping's name begins with `name`.
fn mapped(pid: Pid, name: &str) -> Result<u64, VerifyError> {
    let path = format!("/proc/{pid}/maps");
    let mut total = 0;
    for line in read(&path)?.lines() {
        let form = || VerifyError::Form { path: path.clone(), line: line.into() };
        let (range, rest) = line.split_once(' ').ok_or_else(form)?;
        let (from, to) = range.split_once('-').ok_or_else(form)?;
        let address = |text| u64::from_str_radix(text, 16).map_err(|_| form());
        if rest.split_whitespace().nth(4).is_some_and(|n| n.starts_with(name)) {
            total += address(to)?.saturating_sub(address(from)?);
        }
    }
    Ok(total)
}

/// Kind and options of each mount: `tmpfs ro,nosuid,...` (proc_pid_mountinfo(5): options are field 6, the kind comes
/// after the lone hyphen).
fn mounts(pid: Pid) -> Result<Vec<String>, VerifyError> {
    let path = format!("/proc/{pid}/mountinfo");
    let describe = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        Some(format!("{} {}", after.split(' ').next()?, before.split(' ').nth(5)?))
    };
    let form = |line: &str| VerifyError::Form { path: path.clone(), line: line.into() };
    read(&path)?.lines().map(|line| describe(line).ok_or_else(|| form(line))).collect()
}

fn core_limit(pid: Pid) -> Result<String, VerifyError> {
    let path = format!("/proc/{pid}/limits");
    let text = read(&path)?;
    let line = text.lines().find_map(|l| l.strip_prefix("Max core file size"));
    let hard = line.and_then(|l| l.split_whitespace().nth(1));
    hard.map(Into::into).ok_or_else(|| VerifyError::Form { path, line: line.unwrap_or_default().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look at a process whose threads come and go is a look all the same.
    #[test]
    fn threads_may_end_while_they_are_looked_at() {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::spawn(|| ()).join().unwrap();
                }
            });
            let looks: Vec<_> = (0..200).map(|_| Verified::of(Pid::this()).map(|seen| seen.threads.len())).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(looks.iter().all(|look| matches!(look, Ok(2..))), "{looks:?}");
        });
    }

    #[test]
    fn descriptors_are_exactly_those_expected_in_any_order() {
        let holds = |found: &[&str]| accounted_for(found.iter().copied(), &["/dev/null", "/memfd:", "/", "socket:"]);
        assert!(holds(&["/dev/null", "/memfd:ram", "/boot/kernel", "socket:[7]"]));
        assert!(holds(&["socket:[7]", "/boot/kernel", "/memfd:ram", "/dev/null"]));
        assert!(!holds(&["/dev/null", "/memfd:ram", "/boot/kernel"]), "one is missing");
        assert!(!holds(&["/dev/null", "/memfd:ram", "/boot/kernel", "socket:[7]", "socket:[8]"]), "one too many");
        assert!(!holds(&["/dev/null", "/memfd:ram", "/boot/kernel", "pipe:[7]"]), "another one");
    }

    /// A process that is not confined at all: the verifier itself.
    #[test]
    fn what_is_missing_is_found_and_may_be_tolerated_by_name() {
        let seen = Verified::of(Pid::this()).unwrap();
        let lacking: Layers = seen.findings().into_iter().map(|(layer, _)| layer).collect();
        assert!(Layer::NAMESPACES.iter().chain([&Layer::EmptyRoot]).all(|l| lacking.contains(l)), "{lacking:?}");
        assert!(seen.threads.contains_key(&nix::unistd::gettid().as_raw()) && seen.root_entries > 0);
        let error = seen.check(&Layers::new()).unwrap_err().to_string();
        assert!(error.contains("lacks the layer") && error.contains("Remedy"), "{error}");
        seen.check(&lacking).unwrap();
    }

    #[test]
    fn mappings_are_counted_by_name() {
        let memory = memfd_of("guest-ram-of-a-test", 3 * 4096);
        let own = mapped(Pid::this(), "/memfd:guest-ram-of-a-test").unwrap();
        assert_eq!((own, memory), (3 * 4096, 3 * 4096));
        assert_eq!(mapped(Pid::this(), "/memfd:nothing").unwrap(), 0);
    }

    /// Maps a new memfd of `size` bytes, for as long as the process lives.
    #[allow(unsafe_code)]
    fn memfd_of(name: &str, size: usize) -> u64 {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: a fresh mapping at an address the kernel chooses.
        unsafe {
            let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
            assert_eq!(libc::ftruncate(fd, size as i64), 0);
            let at = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
        }
        size as u64
    }
}
